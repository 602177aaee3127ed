"""The training stage's configuration, under the names that TrainingArguments and peft give each setting.

cyclopts builds the flags of `lorafold train` from this class and the texts below its fields; recipes (YAML)
set the same names. The resolved config is saved in the adapter's `lorafold.json`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from lorafold.api.settle import settle
from lorafold.errors import UsageError

MethodName = Literal[
    "lora",
    "rslora",
    "dora",
    "pissa",
    "olora",
    "loraplus",
    "qlora",
    "full",
    "ptuning",
    "prompt",
    "prefix",
    "ia3",
]
LayoutName = Literal[
    "auto", "instruction", "messages", "conversations", "prompt", "question", "text", "chosen"
]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
OptimName = Literal[
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "sgd",
    "adafactor",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
]
ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What to train, on what, how, and where the result goes."""

    _: KW_ONLY

    base: str = ""
    """Base model: `demo`, a Hugging Face folder, a hub id, or modelscope:ID."""
    data: tuple[str, ...] = ()
    """Data: files (json, jsonl, csv, tsv, txt, parquet), archives or folders of them, or hub ids."""
    out: Path | None = None
    """Folder for the adapter; only --plan does without."""
    method: MethodName = "lora"
    """What is trained and how it starts: see the table of methods in docs/training.md."""
    resume: bool = False
    """Continue an interrupted run into `out` from its latest complete checkpoint."""
    force: bool = False
    """Start over: replace an earlier result in `out`, discard an unfinished run.

    A folder with anything else is never removed.
    """
    plan: bool = False
    """Train nothing: say what the run is, whether it fits in memory, and how long it takes."""
    offline: bool = False
    """Never connect to a hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the base model (Index needs it, for example). Read it first."""

    layout: LayoutName = "auto"
    """Layout of the records; auto: recognised by their fields."""
    chat_template: str | None = None
    """Name or Jinja file of a chat template to use instead of the base's own."""
    system: str | None = None
    """System message for conversations that have none."""
    control_tokens: Literal["text", "parse"] = "text"
    """Control tokens that data write out: text like any other, or parsed (only for data that you trust)."""
    max_length: int = 1024
    """Maximum tokens per example; a longer one is cut at the end (a plain text is split)."""
    allow_pickle: bool = False
    """Read pickled DataFrames. A pickle can run any code: only for files that you made."""
    eval_data: tuple[str, ...] = ()
    """Data for evaluation, like `data`."""
    eval_split: float = 0.0
    """Share of the examples held out for evaluation if there is no eval_data (0 to 0.5)."""

    r: int = 8
    """Rank of the adapter."""
    lora_alpha: float = 16.0
    """Alpha; the adapter is scaled by alpha / r, or by alpha / sqrt(r) with rslora."""
    lora_dropout: float = 0.0
    """Dropout probability of the adapter's input while training."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter: all-linear, names, or one regular expression for the full path."""
    target_parameters: tuple[str, ...] = ()
    """Stacked weights that get an adapter too: experts, or names such as mlp.experts.gate_up_proj."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained and saved in full beside the adapter."""
    layers_to_transform: tuple[int, ...] = ()
    """Numbers of the layers that get an adapter; default: all."""
    loraplus_lr_ratio: float = 16.0
    """loraplus: the learning rate of B divided by the learning rate of A."""
    num_virtual_tokens: int = 20
    """ptuning, prompt, prefix: length of the trained prompt in tokens."""
    new_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary; their embeddings are trained."""

    load_in_4bit: bool = False
    """Keep the base in 4 bit (bitsandbytes); qlora implies it."""
    load_in_8bit: bool = False
    """Keep the base in 8 bit (bitsandbytes LLM.int8)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales of the 4-bit blocks too."""
    bnb_4bit_compute_dtype: DtypeName = "auto"
    """Type in which 4-bit weights are multiplied; auto: as for dtype."""

    learning_rate: float = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: ScheduleName = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0 to its peak."""
    warmup_ratio: float = 0.0
    """The same as a share of all steps, if warmup_steps is 0."""
    per_device_train_batch_size: int = 4
    """Examples in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes that are summed up into one optimizer step."""
    num_train_epochs: float = 3.0
    """Passes over the data."""
    max_steps: int = 0
    """Optimizer steps; if it is not 0, it replaces num_train_epochs."""
    optim: OptimName = "auto"
    """Optimizer; auto: AdamW, fused on a GPU."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    adam_beta1: float = 0.9
    """AdamW's first decay rate."""
    adam_beta2: float = 0.999
    """AdamW's second decay rate."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: not at all."""
    group_by_length: bool = True
    """Put examples of similar length into one batch, to save padding."""
    dtype: DtypeName = "auto"
    """Type of the base's weights; auto: bfloat16 or float16 if the device is fast at it, else float32."""
    device_map: str | None = None
    """Placement of the base: auto, balanced, cpu, cuda:0; default: one device."""
    fsdp: bool | None = None
    """Shard the base's weights across the GPUs (started by torchrun); default: if they take half of one."""

    packing: bool | None = None
    """Lay the examples of a step end to end instead of padding them; default: on a GPU."""
    packing_length: int = 0
    """Maximum tokens per pack; 0: as many as fit in memory, up to 16,384."""
    attn_implementation: str | None = None
    """Attention of transformers (sdpa, eager, flex_attention, flash_attention_2); default: the fastest."""
    use_liger_kernel: bool | None = None
    """Liger's kernels for norms, rotary embedding and gated layers; default: on a GPU, if installed."""
    fused_kernels: bool | None = None
    """Our own kernels for LoRA layers and the loss; default: on a GPU."""
    cuda_graphs: bool | None = None
    """Replay the decoder's launches as CUDA graphs; default: on a GPU, if everything else allows it."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice instead of keeping them; default: only if memory is short."""
    torch_compile: bool = False
    """Compile the decoder's layers with torch, instead of Liger's kernels, ours and CUDA graphs."""
    seed: int = 42
    """Seed of initial weights, order and dropout."""

    logging_steps: int = 1
    """Steps between two lines of metrics.jsonl."""
    save_steps: int = 100
    """Steps between checkpoints; the last step has one too. 0: only if the run is interrupted."""
    save_total_limit: int = 2
    """Number of checkpoints that are kept."""
    eval_steps: int = 0
    """Steps between evaluations; 0: once an epoch."""
    sample_answers: int = 3
    """Held-out questions that the model answers at each evaluation, for metrics.jsonl and the card."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a lower loss; 0: never."""
    load_best_model_at_end: bool = False
    """Write the adapter of the evaluation with the lowest loss instead of the last one."""
    report_to: Literal["none", "tensorboard"] = "none"
    """Also write the figures for TensorBoard, under `runs` in the adapter's folder."""

    def __post_init__(self) -> None:
        settle(self, lists=("target_modules", "target_parameters", "modules_to_save"))

    def check(self) -> None:
        """Refuse values that make no sense, or exclude each other.

        Raises:
            UsageError: naming the field, what was got and what was expected.
        """
        for name in ("base", "data") if self.plan else ("base", "data", "out"):
            if not getattr(self, name):
                raise UsageError(f"{_REQUIRED[name]} is required", at=f"--{name}", fix=f"pass --{name}")
        for name, (low, high, wanted) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"expected {wanted}, got {value}", at=_flag(name), fix=f"pass {wanted}")
        if self.load_in_4bit and self.load_in_8bit:
            raise UsageError("4 bit and 8 bit exclude each other", at="--load-in-8bit", fix="choose one")
        if (self.load_best_model_at_end or self.early_stopping_patience) and not self.evaluates:
            name = "load_best_model_at_end" if self.load_best_model_at_end else "early_stopping_patience"
            raise UsageError("there is nothing to evaluate on", at=_flag(name), fix="pass --eval-split 0.1")
        if self.target_parameters and (self.lora_dropout or self.method not in _FOR_PARAMETERS):
            at, wrong = ("--lora-dropout", "dropout") if self.lora_dropout else ("--method", self.method)
            raise UsageError(
                f"peft has no {wrong} for --target-parameters", at=at, fix="use --method lora without dropout"
            )
        if 0 < self.packing_length < self.max_length:
            problem = f"a pack of {self.packing_length} tokens cannot hold an example of {self.max_length}"
            raise UsageError(problem, at="--packing-length", fix="raise it, or lower --max-length")
        if self.fsdp and self.method == "full":
            problem = "it shards frozen weights, and here all are trained"
            raise UsageError(problem, at="--fsdp", fix="choose --method lora, or leave --fsdp out")
        if self.fsdp and self.device_map:
            raise UsageError("--device-map excludes it", at="--fsdp", fix="choose one")
        if self.lr_scheduler_type == "polynomial" and self.learning_rate <= _POLYNOMIAL_END:
            problem = (
                f"the polynomial schedule ends at {_POLYNOMIAL_END}, got {self.learning_rate} to begin with"
            )
            raise UsageError(problem, at="--learning-rate", fix="raise it, or choose another schedule")
        if self.method == "prefix" and self.gradient_checkpointing:
            problem = "a trained prefix lies in the key-value cache, which checkpointing does not have"
            raise UsageError(
                problem, at="--gradient-checkpointing", fix="leave it out, or choose --method ptuning"
            )
        if self.method == "full" and (self.load_in_4bit or self.load_in_8bit):
            problem = "quantized weights cannot be trained themselves"
            raise UsageError(problem, at="--method full", fix="choose --method qlora")
        if self.method == "pissa" and (self.load_in_4bit or self.load_in_8bit):
            problem = "it starts from a part of the weights, which cannot be taken out of quantized ones"
            raise UsageError(problem, at="--method pissa", fix="choose --method olora or qlora")

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation set."""
        return bool(self.eval_data) or self.eval_split > 0

    @property
    def output(self) -> Path:
        """The output folder of a checked config."""
        assert self.out is not None, "check() comes first"
        return self.out

    def resolved(self) -> dict[str, Any]:
        """The config as JSON values."""
        values = dataclasses.asdict(self)
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


_REQUIRED = {"base": "a model folder, a hub id or `demo`", "data": "a data file", "out": "an output folder"}
_POLYNOMIAL_END = 1e-7  # of transformers' `get_polynomial_decay_schedule_with_warmup`

_ANY = math.inf
_FOR_PARAMETERS = ("lora", "rslora", "loraplus", "qlora")
_RANGES: dict[str, tuple[float, float, str]] = {
    "learning_rate": (5e-324, 1e30, "a number above 0"),  # beyond it float32 itself overflows
    "r": (1, _ANY, "a rank of 1 or more"),
    "lora_alpha": (5e-324, _ANY, "a number above 0"),
    "lora_dropout": (0, 0.999, "a probability from 0 to 0.999"),
    "max_length": (2, _ANY, "2 or more tokens"),
    "eval_split": (0, 0.5, "a share from 0 to 0.5"),
    "loraplus_lr_ratio": (5e-324, _ANY, "a number above 0"),
    "num_virtual_tokens": (1, _ANY, "1 or more"),
    "warmup_steps": (0, _ANY, "0 or more"),
    "warmup_ratio": (0, 1, "a share from 0 to 1"),
    "per_device_train_batch_size": (1, _ANY, "1 or more"),
    "gradient_accumulation_steps": (1, _ANY, "1 or more"),
    "num_train_epochs": (5e-324, _ANY, "a number above 0"),
    "max_steps": (0, _ANY, "0 or more"),
    "packing_length": (0, _ANY, "0 or more tokens"),
    "weight_decay": (0, _ANY, "0 or more"),
    "adam_beta1": (0, 0.999999, "a number from 0 to below 1"),
    "adam_beta2": (0, 0.999999, "a number from 0 to below 1"),
    "adam_epsilon": (5e-324, _ANY, "a number above 0"),
    "max_grad_norm": (0, _ANY, "0 or more"),
    "seed": (0, 2**63 - 1, "a whole number from 0"),
    "logging_steps": (1, _ANY, "1 or more"),
    "save_steps": (0, _ANY, "0 or more"),
    "save_total_limit": (1, _ANY, "1 or more"),
    "eval_steps": (0, _ANY, "0 or more"),
    "early_stopping_patience": (0, _ANY, "0 or more"),
    "sample_answers": (0, _ANY, "0 or more"),
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
