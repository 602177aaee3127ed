"""What `lorafold chat` and `lorafold compare` are asked to do, and how a model draws its tokens."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from lorafold.api.settle import settle
from lorafold.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The names are those of llama.cpp, Ollama and vLLM.

    Attributes:
        temperature: 0 takes the likeliest token; 1 samples the model's own distribution.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the likeliest.
        repeat_penalty: divide the logits of the last 64 tokens by this; 1 changes nothing.
        seed: of the random numbers; None draws a new one per answer.
        max_tokens: an answer ends after this many tokens.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"expected {low} to {high}, got {value}", at=f"--{name.replace('_', '-')}")


SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 10),
    "top_p": (0, 1),
    "top_k": (0, 1_000_000),
    "min_p": (0, 1),
    "repeat_penalty": (0.1, 10),
    "seed": (0, 2**32 - 2),
    "max_tokens": (1, 1_000_000),
}
NOISY = 2.0  # the highest temperature that OpenAI's interface takes
WHOLE = ("top_k", "seed", "max_tokens")  # the settings that are whole numbers
NOBODY_VOTES = "a blind vote needs somebody at a terminal"
REPEAT_WINDOW = 64  # tokens that the repeat penalty looks back on, as in llama.cpp and Ollama


def noise_note(sampling: Sampling) -> str:
    """A warning for a temperature at which few models give sensible answers; "" for a usual one."""
    if sampling.temperature <= NOISY:
        return ""
    return f"temperature {sampling.temperature:g}: above {NOISY:g} answers are mostly noise"


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Talk to one model, or to several side by side."""

    models: tuple[str, ...]
    """GGUF, `base.gguf+adapter.gguf`, export folder, Hugging Face folder, `BASE+ADAPTER`, `ollama:NAME`, `http://…`."""

    _: KW_ONLY

    prompt: tuple[str, ...] = ()
    """Ask this question and leave. Repeat the option to ask several, one after the other."""

    json: bool = False
    """One JSON object per question on standard output (implies plain output)."""

    system: str | None = None
    """The system message; '' for none. Default: the one that a model was trained or exported with."""

    temperature: float | None = None
    """0 takes the likeliest token, 1 samples the model's own distribution. Default: 0.7."""

    top_p: float | None = None
    """Keep the likeliest tokens that together have this probability; 1: all. Default: 0.95."""

    top_k: int | None = None
    """Keep this many tokens; 0: all. Default: 40."""

    min_p: float | None = None
    """Drop tokens less likely than this share of the likeliest. Default: 0.05."""

    repeat_penalty: float | None = None
    """Divide the logits of the last 64 tokens by this; 1: off. Default: 1."""

    seed: int | None = None
    """Seed of the random numbers. Default: a new one for each answer."""

    max_tokens: int | None = None
    """An answer ends after this many tokens. Default: 1024."""

    context: int | None = None
    """Tokens that a conversation may hold. Default: the model's own limit, at most 8192."""

    threads: int = 0
    """Threads that compute; 0: OMP_NUM_THREADS, or one per core."""

    chat_template: str | None = None
    """A Jinja file or the name of a known template, instead of the model's own."""

    load_in_4bit: bool = False
    """Load Hugging Face folders in 4 bit (bitsandbytes, NF4)."""

    tools: Path | None = None
    """JSON file with the definitions of tools that the models may call, as OpenAI writes them."""

    trust_remote_code: bool = False
    """Allow a model folder that brings its own Python code to run it."""

    offline: bool = False
    """Use only local files; never download."""

    blind: bool = False
    """Hide the names and shuffle the columns until you have voted."""

    plain: bool = False
    """Plain lines instead of columns and colours."""

    session: Path | None = None
    """Continue a conversation that /save wrote; options given beside it replace the saved settings."""

    def __post_init__(self) -> None:
        settle(self)
        check_models(self.models, self.context, self.threads)
        sampling_of(self)
        if self.blind and len(self.models) < 2:
            raise UsageError("one model alone cannot be compared", at="--blind", fix="pass two models")
        if self.blind and (self.prompt or self.json):
            raise UsageError(NOBODY_VOTES, at="--blind", fix="leave out --prompt and --json")


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """Ask two or more models the same questions and save the answers side by side."""

    models: tuple[str, ...]
    """The original model first, then the tuned ones; written as for `chat`."""

    _: KW_ONLY

    prompts: Path
    """Questions: text with one a line, or a data file as for `train`, such as ADAPTER/heldout.jsonl."""

    out: tuple[Path, ...] = ()
    """File to write: .html (one self-contained page), .md or .jsonl. Repeat the option for several."""

    system: str | None = None
    """System message for questions that have none of their own; '' for none. Default: the one that a model
    was trained or exported with."""

    limit: int | None = None
    """Ask only this many questions, from the first."""

    temperature: float = 0.0
    """0 takes the likeliest token, so that differences come from the models and not from chance."""

    top_p: float = 0.95
    """Keep the likeliest tokens that together have this probability; 1: all."""

    top_k: int = 40
    """Keep this many tokens; 0: all."""

    min_p: float = 0.05
    """Drop tokens less likely than this share of the likeliest."""

    repeat_penalty: float = 1.0
    """Divide the logits of the last 64 tokens by this; 1: off."""

    seed: int = 0
    """Seed of the random numbers."""

    max_tokens: int = 256
    """An answer ends after this many tokens."""

    lens: bool = True
    """Show, token by token, how surprising each answer is to the other model."""

    context: int | None = None
    """Tokens that a conversation may hold. Default: the model's own limit, at most 8192."""

    threads: int = 0
    """Threads that compute; 0: OMP_NUM_THREADS, or one per core."""

    chat_template: str | None = None
    """A Jinja file or the name of a known template, instead of the models' own."""

    load_in_4bit: bool = False
    """Load Hugging Face folders in 4 bit (bitsandbytes, NF4)."""

    tools: Path | None = None
    """JSON file with the definitions of tools that the models may call, as OpenAI writes them."""

    trust_remote_code: bool = False
    """Allow a model folder that brings its own Python code to run it."""

    offline: bool = False
    """Use only local files; never download."""

    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        settle(self)
        check_models(self.models, self.context, self.threads)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"expected at least 1, got {self.limit}", at="--limit")
        sampling_of(self)


def check_models(models: tuple[str, ...], context: int | None, threads: int) -> None:
    """Check what both commands share.

    Raises:
        UsageError: no model, too many for columns, or a number that cannot be meant.
    """
    if not models:
        raise UsageError("no model given", fix="pass a GGUF, a folder, ollama:NAME or an http address")
    if len(models) > 6:
        raise UsageError(f"{len(models)} models do not fit side by side", fix="pass at most 6")
    if context is not None and context < 64:
        raise UsageError(f"expected at least 64 tokens, got {context}", at="--context")
    if threads < 0:
        raise UsageError(f"expected 0 or more, got {threads}", at="--threads")


def sampling_of(config: ChatConfig | CompareConfig, saved: Sampling | None = None) -> Sampling:
    """The part of a config that says how tokens are drawn.

    Args:
        config: what was given.
        saved: of a conversation that goes on; holds for what was not given.
    """
    given = {name: getattr(config, name) for name in SAMPLING_RANGES}
    known = {name: value for name, value in given.items() if value is not None}
    return replace(saved or Sampling(), **known)
