"""What `lorafold export` is asked to do."""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Literal

from lorafold.api.settle import settle
from lorafold.errors import UsageError
from lorafold.machine import cores

# Options that only some formats use.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("quant", "tensor_type", "imatrix", "imatrix_data", "imatrix_share"), ("gguf",)),
    **dict.fromkeys(("system", "thinking", "allow_embedded_jinja", "split_max_size"), ("gguf",)),
    **dict.fromkeys(("ollama_path", "ollama", "onto", "mmproj", "keep_delta", "fit", "max_kl"), ("gguf",)),
    "dtype": ("folder", "adapter"),
    "shard_max_size": ("folder",),
    "seed": ("folder",),
    "rounding": ("gguf", "folder"),
    "chat_template": ("gguf", "folder"),
}
INSTEAD = {
    "quant": "--dtype for the type of the weights",
    "dtype": "--quant F16, BF16 or F32",
    "split_max_size": "--shard-max-size for a folder",
    "shard_max_size": "--split-max-size for GGUF files",
    "keep_delta": "--dtype f32 for a folder",
}

LONGEST_STEM = 180  # bytes; file systems take 255, of which a type, a part's number and ".gguf" need some


def file_stem(name: str) -> str:
    """A model's name as a file name: no separator, no leading dot; empty if nothing is left."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def read_size(text: str, flag: str) -> int:
    """A size in bytes; 1 GB is 10⁹ of them, 1 GiB 2³⁰.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"expected a size, got {text!r}", at=flag, fix="for example 4.5GB")
    power = " kmgt".index((found[2] or " ").lower())
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Fold (merge) an adapter into its base and write GGUF files, a merged folder, or an adapter GGUF."""

    source: str
    """An adapter folder, or a base to convert as it is (folder, hub id, `demo`)."""

    _: KW_ONLY

    out: Path
    """The folder to make."""

    base: str | None = None
    """The base model, if the adapter does not name it or it lies elsewhere."""

    adapter: tuple[str, ...] = ()
    """Further adapters as FOLDER or FOLDER=WEIGHT; the weight of the first is set by SOURCE=WEIGHT."""

    format: Literal["gguf", "folder", "adapter"] = "gguf"
    """gguf: for llama.cpp and Ollama; folder: merged Hugging Face folder; adapter: for llama.cpp's --lora."""

    fold_into: Literal["auto", "original", "quantized"] = "auto"
    """What an adapter of a 4-bit or 8-bit base is merged into. original: the 16-bit model; quantized: the
    base's own weights, unpacked; auto: the better one by measurement if both are on this disk."""

    onto: str | None = None
    """A GGUF of the base to merge into, of any architecture: a file, or ORG/NAME-GGUF:BF16 on a hub, of which
    only what is needed is read; what the adapter leaves alone stays as it is."""

    mmproj: str | None = None
    """The projector (mmproj) of a multimodal base, a file or ORG/NAME-GGUF:FILE on a hub: compared with the
    base, folded onto if the adapter changes the tower, and handed over beside the GGUF."""

    quant: tuple[str, ...] = ()
    """Quantization types of GGUF files; default: Q4_K_M, or with --onto the file's own; several are written
    from one read."""

    tensor_type: tuple[str, ...] = ()
    """Types of single tensors as PATTERN=TYPE, for example `ffn_down=Q6_K`; the first match counts."""

    keep_delta: float | None = None
    """Raise the types of tensors, and only of those, that keep less than this share of the adapter's change
    (for example 0.9), to the smallest types that keep it."""

    fit: str | None = None
    """The size that the GGUF may have, for example 4.5GB: the types that cost this model's answers least in
    that size, by measurement; never worse than the largest mixture that fits, or the one of --quant."""

    max_kl: float | None = None
    """The smallest GGUF whose answers are at most so far from base + adapter, in nats (for example 0.02): its
    types are chosen and measured as for --fit."""

    imatrix: Path | None = None
    """An importance matrix (GGUF or llama.cpp's older format)."""

    imatrix_data: Path | None = None
    """Collect an importance matrix on these texts (data as for `train`, or plain text) and on a few general
    ones; needs torch."""

    imatrix_share: float | None = None
    """The share of --imatrix-data in the matrix, 1 for these texts alone; default: what is best on some of
    them that are held out, which may be no matrix at all."""

    dtype: Literal["keep", "bf16", "f16", "f32"] = "keep"
    """Type of the weights; keep: in a merged folder as in the base, in an adapter GGUF F16."""

    rounding: Literal["exact", "peft", "stochastic"] = "exact"
    """exact: quantize the float32 sum; peft: round the sum to the base's type first, as PEFT's merge does;
    stochastic: round a merged folder's 16-bit weights up or down at random, so that small changes survive."""

    seed: int = 0
    """Of stochastic rounding: the same seed gives the same bytes."""

    name: str | None = None
    """The model's name in the metadata and, cleaned, in file names; default: the folder's name."""

    chat_template: str | None = None
    """A Jinja file or the name of a known template, for models that have none."""

    pre_tokenizer: str | None = None
    """llama.cpp's name of the pre-tokenizer, if it is not recognised."""

    system: str | None = None
    """A system message for the Modelfile."""

    thinking: Literal["on", "off"] | None = None
    """Fix the template's thinking switch; default: Ollama's own switch decides."""

    ollama_path: Literal["template", "jinja"] | None = None
    """What writes the prompt in Ollama 0.30+; default: the GGUF's Jinja if it has tools and is proven."""

    ollama: str | None = None
    """Create the model under this name in the running Ollama (OLLAMA_HOST), and compare its prompts there."""

    modelfile: bool = True
    """Write a Modelfile; without it a model needs no chat template."""

    allow_embedded_jinja: bool = False
    """If the template cannot be expressed for Ollama, rely on the Jinja template inside the GGUF."""

    chats: Path | None = None
    """Held-out chats for the proof (data as for `train`, or txt); default: the adapter's own, if any."""

    verify: bool = True
    """End with the proof."""

    proof_minutes: float = 0.0
    """Minutes that the answers may be asked for; 0: as many chats as take about the export's own time."""

    reference: Literal["auto", "layers", "peft"] = "auto"
    """What the answers are held against. layers: transformers' model, a layer at a time, with the weights of
    the merge; peft: the whole base with PEFT's adapter beside it; auto: layers, or peft if that fails."""

    require_proof: bool = False
    """Fail, with exit code 6, also if a part of the proof could not be checked."""

    report: bool = False
    """Write report.html too: what was made, what survives, what was proven, as a page with pictures."""

    sbom: bool = False
    """Write `sbom.cdx.json` too: what went in, with hashes, versions and licences, as CycloneDX 1.6."""

    split_max_size: str | None = None
    """Split a GGUF into files of at most this size, for example 4GB (Ollama before 0.30 imports only whole
    ones)."""

    shard_max_size: int = 5_000_000_000
    """Split a merged folder's weights into files of at most this many bytes."""

    threads: int = 0
    """Worker threads; 0: one for each core."""

    max_memory: int = 200_000_000
    """Bytes that row blocks in flight may take, all threads together."""

    plan: bool = False
    """Only show what would be done: tensors, types, sizes, memory, disk, time."""

    tensors: bool = False
    """List every tensor in the plan, with its shape, type, bytes and offset."""

    force: bool = False
    """Replace an earlier export in the output folder; a folder with anything else is never removed."""

    offline: bool = False
    """Never connect to a hub."""

    trust_remote_code: bool = False
    """Allow a base whose repository brings Python code (it is not run by the export)."""

    def __post_init__(self) -> None:
        for name in ("fit", "split_max_size"):
            if (size := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(size))  # from Python a number of bytes will do
        settle(self, lists=("quant",))
        if self.threads < 0:
            raise UsageError(f"expected 0 or more, got {self.threads}", at="--threads")
        self._check_format()
        if self.onto is not None and self.imatrix_data is not None:
            raise UsageError(
                "a matrix cannot be collected for --onto",
                at="--imatrix-data",
                fix="pass --imatrix with one that llama-imatrix made of this file, or with the imatrix.gguf "
                "of a native export (without --onto, with --imatrix-data)",
            )
        self._check_types()
        if self.rounding == "stochastic" and self.format != "folder":
            raise UsageError(
                "only the 16-bit weights of a merged folder are rounded at random",
                at="--rounding",
                fix="choose --format folder, or --keep-delta 0.9 for a GGUF",
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"expected a number from 0 on, got {self.seed}", at="--seed")
        if self.ollama is not None and not self.modelfile:
            raise UsageError(
                "without a Modelfile there is no prompt to compare",
                at="--ollama",
                fix="leave out --no-modelfile",
            )
        if not self.quant and self.format == "gguf" and self.onto is None and not self.measures_size:
            object.__setattr__(self, "quant", ("Q4_K_M",))  # the config that is saved says what was done
        if not self.proof_minutes >= 0:
            raise UsageError(f"expected 0 or more, got {self.proof_minutes}", at="--proof-minutes")
        if self.require_proof and not self.verify:
            raise UsageError(
                "there is no proof to require", at="--require-proof", fix="leave out --no-verify"
            )
        if self.tensors and not self.plan:
            raise UsageError("--tensors lists the tensors of a plan", at="--tensors", fix="pass --plan")
        if self.imatrix is not None and self.imatrix_data is not None:
            raise UsageError(
                "a matrix is given already",
                at="--imatrix-data",
                fix="pass either --imatrix or --imatrix-data",
            )
        self._check_share()
        if self.name and not 0 < len(file_stem(self.name).encode()) <= LONGEST_STEM:
            raise UsageError(
                f"{self.name[:40]!r} gives no file name (expected a letter or digit, "
                f"and at most {LONGEST_STEM} bytes)",
                at="--name",
                fix="choose a name such as my-model or Qwen/my-model",
            )
        for flag, value in (
            ("--split-max-size", self.split_bytes),
            ("--shard-max-size", self.shard_max_size),
            ("--max-memory", self.max_memory),
            ("--fit", self.fit_bytes),
        ):
            if value is not None and value < 100_000:
                raise UsageError(f"expected at least 100,000 bytes, got {value}", at=flag)

    def _check_share(self) -> None:
        """Refuse a share of the user's texts that is none, or that nothing is mixed by."""
        if self.imatrix_share is None:
            return
        if self.imatrix_data is None:
            raise UsageError(
                "there are no texts to mix",
                at="--imatrix-share",
                fix="pass --imatrix-data with it, or leave it out",
            )
        if not 0 <= self.imatrix_share <= 1:
            raise UsageError(
                f"expected a share from 0 to 1, got {self.imatrix_share}",
                at="--imatrix-share",
                fix="0.75 makes three quarters of the matrix of your texts",
            )

    def _check_types(self) -> None:
        """Refuse a share, size or distance that is none, and what would choose the types otherwise."""
        for flag, value in (("--fit", self.fit), ("--max-kl", self.max_kl)):
            if value is not None and len(self.quant) > 1:
                raise UsageError("the types of one file are chosen", at=flag, fix="give one --quant, or none")
            if value is not None and self.split_max_size is not None:
                raise UsageError("parts have headers of their own", at=flag, fix="leave out --split-max-size")
        if self.fit is not None and self.max_kl is not None:
            raise UsageError("--fit asks for a size already", at="--max-kl", fix="leave out one of the two")
        if self.max_kl is not None and self.onto is not None:
            raise UsageError(
                "a file's own tensors are not measured", at="--max-kl", fix="pass --fit, or leave out --onto"
            )
        if self.keep_delta is not None and not 0 < self.keep_delta <= 1:
            raise UsageError(
                f"expected a share of the adapter's change, above 0 and at most 1, got {self.keep_delta}",
                at="--keep-delta",
                fix="0.9 is a good choice",
            )
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise UsageError(
                f"expected a distance in nats, above 0, got {self.max_kl}",
                at="--max-kl",
                fix="for example 0.02; the proof's mean KL says what a type has",
            )

    def _check_format(self) -> None:
        """Refuse options that the format does not use: they would be ignored without a word."""
        for field in fields(self):
            formats = ONLY_FOR.get(field.name)
            if formats is None or self.format in formats or getattr(self, field.name) == field.default:
                continue
            flag = "--" + field.name.replace("_", "-")
            instead = f" and pass {INSTEAD[field.name]}" if field.name in INSTEAD else ""
            raise UsageError(
                f"this has no meaning for --format {self.format}",
                at=flag,
                fix=f"leave it out{instead}, or choose --format {' or '.join(formats)}",
            )

    @property
    def measures_size(self) -> bool:
        """Whether types are chosen for a size or a distance."""
        return self.fit is not None or self.max_kl is not None

    @property
    def measures_types(self) -> bool:
        """Whether types are chosen by what they do to this model."""
        return self.measures_size or self.keep_delta is not None

    @property
    def fit_bytes(self) -> int | None:
        """`fit` in bytes."""
        return None if self.fit is None else read_size(self.fit, "--fit")

    @property
    def split_bytes(self) -> int | None:
        """`split_max_size` in bytes."""
        return None if self.split_max_size is None else read_size(self.split_max_size, "--split-max-size")

    @property
    def workers(self) -> int:
        """Worker threads, resolved."""
        if self.threads:
            return self.threads
        return cores()


@dataclass(frozen=True, slots=True)
class ModelfileConfig:
    """Write the proven Ollama Modelfile of any Hugging Face folder or GGUF."""

    path: Path
    """A Hugging Face folder or a GGUF file."""

    _: KW_ONLY

    out: Path | None = None
    """The file to write; default: `Modelfile` beside the GGUF or in the folder."""

    from_name: str | None = None
    """The value of FROM; default: the GGUF, or `.` for a folder."""

    adapter: str | None = None
    """An adapter GGUF for ADAPTER, which Ollama 0.34.1 and later refuse."""

    chat_template: str | None = None
    """A Jinja file or the name of a template (chatml, llama-2, …), instead of the model's own."""

    system: str | None = None
    """A system message for chats that have none."""

    thinking: Literal["on", "off"] | None = None
    """Fix the template's thinking switch; default: Ollama's own switch decides."""

    num_ctx: int | None = None
    """Context length in tokens; default: the model's own."""

    ollama_path: Literal["template", "jinja"] | None = None
    """What writes the prompt in Ollama 0.30+; default: the GGUF's Jinja if it has tools and is proven."""

    conversations: int = 300
    """Random conversations that Jinja and the TEMPLATE are compared on."""

    allow_embedded_jinja: bool = False
    """If the template cannot be expressed, write a Modelfile that relies on the GGUF's Jinja template."""

    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, slots=True)
class PushConfig:
    """Put an export on the Hugging Face Hub or ModelScope: its files, a model card, and what Ollama reads."""

    folder: Path
    """The export."""

    repo: str
    """Name of the repository, ORG/NAME; it is made, and private, if there is none."""

    _: KW_ONLY

    to: Literal["huggingface", "modelscope"] = "huggingface"
    """The hub. ModelScope's token comes from MODELSCOPE_API_TOKEN."""

    public: bool = False
    """Everybody may see it."""

    license: str | None = None
    """Licence for the model card. Default: that of the base, if its own card tells."""

    plan: bool = False
    """Say what would be sent; nothing connects."""

    force: bool = False
    """Add to a repository that holds files of something else."""
