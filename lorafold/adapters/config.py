"""What `adapter_config.json` says about an adapter, and which adapters can be folded into weights at all.

`AdapterConfig` has PEFT's own field names (PEFT 0.21). What no weight matrix can express, and what PEFT
itself cannot merge, is refused by name with what to do instead. Every other field is used, is known to change
nothing of the weights, or is named in a note.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafold.adapters.fields import (
    FOLDABLE,
    HARMLESS,
    HARMLESS_OF_OTHERS,
    KNOWN_INITS,
    KNOWN_INITS_OF_ANY_CASE,
    LOST_BASE,
    MERGE_FIRST,
    MERGER,
    MLX_AGAIN,
    NOT_FOLDABLE_OPTIONS,
    NOT_IN_WEIGHTS,
    NOT_WEIGHTS,
    OPTIONS_OF_OTHERS,
    PEFT_DEFAULTS,
    RESIDUAL_BASE,
    SINCE_0_14,
    USED,
)
from lorafold.adapters.patterns import ENDED, ENDS, FIELDS
from lorafold.errors import InputError
from lorafold.files.jsonfile import read_object

CONFIG = "adapter_config.json"
SAVE_AGAIN = "save or download the adapter again"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of `adapter_config.json` that decide how weights are folded, under PEFT's names.

    Args:
        path: the file.
        peft_type: one of `FOLDABLE`.
        r: rank if no pattern matches; the initial one of AdaLoRA; 0 for methods without one.
        lora_alpha: alpha if no pattern matches.
        use_rslora: scale by alpha / sqrt(r) instead of alpha / r.
        use_dora: rows (columns of a transposed weight) are rescaled to a trained magnitude.
        lora_bias: B has a bias of its own.
        bias: which biases of the base were trained: "none", "all" or "lora_only".
        fan_in_fan_out: the targeted weights are stored as (in, out).
        rank_pattern: regular expression of a module's name: its rank, the first match counts.
        alpha_pattern: the same for alpha.
        init_lora_weights: how A and B began; "pissa", "olora" took their part out of the base.
        target_modules: names, a regular expression, or None.
        exclude_modules: names or a regular expression left out of them.
        target_parameters: names of parameters (experts) adapted without a module.
        layers_to_transform: layers that `target_modules` is limited to, or None.
        layers_pattern: names of the list of layers that `layers_to_transform` counts in.
        modules_to_save: modules trained and saved whole.
        trainable_token_indices: rows of the embedding (or of each named module) that were trained.
        ensure_weight_tying: tied modules were trained as one.
        blocks: block-diagonal LoRA: (number of blocks, modules with such an A, modules with such a B).
        kasa: KaSA: the base's smallest singular values are dropped, and a diagonal lies between A and B.
        feedforward_modules: (IA)³ modules whose inputs are scaled.
        base_model_name_or_path: what the adapter says its base is.
        peft_version: of the PEFT that wrote it, since 0.18.0; None if it does not say.
        mlx: mlx-lm wrote it; see `adapters.mlx`.
        notes: fields with a value that nothing here knows, to be told.
        assumed: numbers that it does not say, so that PEFT's default counts.
        one_pattern: rank and alpha have one pattern, as in PEFT up to 0.13; None if nothing tells.
    """

    path: Path
    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    lora_bias: bool
    bias: str
    fan_in_fan_out: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    init_lora_weights: bool | str
    target_modules: tuple[str, ...] | str | None
    exclude_modules: tuple[str, ...] | str | None
    target_parameters: tuple[str, ...]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None
    ensure_weight_tying: bool
    blocks: tuple[int, tuple[str, ...], tuple[str, ...]] | None
    kasa: bool
    feedforward_modules: tuple[str, ...] | str
    base_model_name_or_path: str | None
    peft_version: str | None = None
    mlx: bool = False
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    one_pattern: bool | None = None

    def rank(self, module: str) -> int:
        """The rank of a module, named as in the model ("model.layers.0.self_attn.q_proj")."""
        return self._rank(module, one_pattern=bool(self.one_pattern))

    def _rank(self, module: str, *, one_pattern: bool) -> int:
        if one_pattern:
            return int(self.rank_pattern.get(self._shared_pattern(module), self.r))
        return int(_first_match(self.rank_pattern, module, self.r))

    def told_by_ranks(self, ranks: Mapping[str, int]) -> AdapterConfig:
        """The configuration with `one_pattern` decided by the ranks that the tensors have, if they tell.

        Args:
            ranks: by module.
        """
        if self.one_pattern is not None or self.peft_type != "LORA":
            return self
        for module, rank in ranks.items():
            before, since = (self._rank(module, one_pattern=rule) for rule in (True, False))
            if before != since and rank in (before, since):
                return replace(self, one_pattern=rank == before)
        return self

    def scale(self, module: str) -> float:
        """What B·A is multiplied with: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732).

        AdaLoRA (arXiv:2303.10512): alpha / (initial rank + 1e-5), with that rank for an alpha of 0.
        """
        if self.peft_type == "ADALORA":
            return (self.lora_alpha if self.lora_alpha > 0 else self.r) / (self.r + 1e-5)
        alpha, rank = self._alpha(module), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _alpha(self, module: str) -> float:
        """The alpha of a module.

        PEFT up to 0.13 looked for the first pattern that matches among those of ranks and alphas together,
        and took the alpha of that one; since 0.14 each has its own. The file names the version since 0.18;
        before, fields that only 0.14 and later write tell it, or the ranks of the tensors.

        Raises:
            InputError: the two rules differ here, and nothing tells which PEFT wrote it.
        """
        today = _first_match(self.alpha_pattern, module, self.lora_alpha)
        before = self.alpha_pattern.get(self._shared_pattern(module), self.lora_alpha)
        if today != before and self.one_pattern is None:
            raise InputError(
                f"alpha of {module} is {before:g} by the rule of PEFT 0.13 and older, and {today:g} since "
                "0.14; the file has no peft_version",
                at=f"{self.path}: alpha_pattern",
                fix='set "peft_version" in it to the version of PEFT that saved this adapter',
            )
        return before if self.one_pattern else today

    def _shared_pattern(self, module: str) -> str:
        """The one pattern that PEFT up to 0.13 found for a module; its own name if none matched."""
        patterns = (*self.rank_pattern, *self.alpha_pattern)
        return next((pattern for pattern in patterns if re.match(ENDED.format(pattern), module)), module)

    @property
    def patterns(self) -> dict[str, Any]:
        """The fields that hold regular expressions, or names that PEFT takes for some."""
        return {name: getattr(self, name) for name in FIELDS if hasattr(self, name)}

    @property
    def rounds_product(self) -> bool:
        """Whether PEFT rounds B·A to the base's type before it adds it, as it does in these variants."""
        return self.kasa or self.blocks is not None or str(self.init_lora_weights).lower() == "mica"


def _has_one_pattern(raw: Mapping[str, Any]) -> bool | None:
    """Whether a PEFT before 0.14 wrote this, by the version or by the fields; None if neither tells."""
    match = re.match(r"(\d+)\.(\d+)", str(raw.get("peft_version")))
    if match is not None:
        return (int(match[1]), int(match[2])) < (0, 14)
    return False if raw.get("peft_version") or not SINCE_0_14.isdisjoint(raw) else None


def _first_match(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first pattern, in the file's order, that matches the end of the module's name."""
    for pattern, value in patterns.items():
        if re.match(ENDS.format(pattern), module):
            return value
    return default


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check an adapter's configuration.

    Args:
        folder: the adapter's folder.

    Returns:
        The configuration.

    Raises:
        InputError: it is missing or damaged, a field has the wrong type, or the method or an option of it
            cannot be folded.
    """
    path = folder / CONFIG
    raw = read_object(path)
    if is_mlx(raw):
        return _mlx_config(path, raw)
    method = str(raw.get("peft_type")).rpartition(".")[2].upper()
    _check_method(path, method)
    if method == "LORA":
        _check_options(path, raw)
    field = _Fields(path, raw)
    pruned = method == "ADALORA"  # its rank_pattern holds masks, and its tensors are cut to them
    rank = "init_r" if pruned else "r"
    blocks = raw.get("use_bdlora")
    assumed = tuple(name for name in (rank, "lora_alpha") if "LORA" in method and name not in raw)
    indices = raw.get("token_indices" if method == "TRAINABLE_TOKENS" else "trainable_token_indices")
    return AdapterConfig(
        path=path,
        peft_type=method,
        r=field.number(rank, PEFT_DEFAULTS[rank], least=1, whole=True) if "LORA" in method else 0,
        lora_alpha=field.number("lora_alpha", PEFT_DEFAULTS["lora_alpha"]) if "LORA" in method else 0,
        use_rslora=bool(raw.get("use_rslora")),
        use_dora=bool(raw.get("use_dora")),
        lora_bias=bool(raw.get("lora_bias")),
        bias=str(raw.get("bias") or "none"),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        rank_pattern={} if pruned else field.patterns("rank_pattern", least=1, whole=True),
        alpha_pattern=field.patterns("alpha_pattern"),
        init_lora_weights=raw.get("init_lora_weights", True),
        target_modules=field.modules("target_modules"),
        exclude_modules=field.modules("exclude_modules"),
        target_parameters=field.names("target_parameters"),
        layers_to_transform=field.layers("layers_to_transform"),
        layers_pattern=field.names("layers_pattern"),
        modules_to_save=field.names("modules_to_save"),
        trainable_token_indices=field.tokens(indices),
        ensure_weight_tying=bool(raw.get("ensure_weight_tying")),
        blocks=field.blocks(blocks) if blocks else None,
        kasa=bool(raw.get("kasa_config")),
        feedforward_modules=field.modules("feedforward_modules") or (),
        base_model_name_or_path=raw.get("base_model_name_or_path") or None,
        peft_version=str(raw["peft_version"]) if raw.get("peft_version") else None,
        notes=(
            *(
                f"{CONFIG} has no {name}: PEFT's default of {PEFT_DEFAULTS[name]} counts, which may not be "
                "what was trained"
                for name in assumed
                if name == "lora_alpha"  # the tensors have their rank
            ),
            *_unknown_fields(raw),
        ),
        assumed=assumed,
        one_pattern=_has_one_pattern(raw),
    )


def _unknown_fields(raw: Mapping[str, Any]) -> Iterator[str]:
    """What is said of fields that neither this program nor PEFT 0.21 knows, if they hold anything."""
    for name, value in raw.items():
        if value and name not in USED | HARMLESS | HARMLESS_OF_OTHERS and name not in NOT_FOLDABLE_OPTIONS:
            yield f"{CONFIG}: {name} is not known here, and was not used (it is {value!r:.60})"


def is_mlx(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json was written by mlx-lm, which has a format of its own under that name."""
    return not raw.get("peft_type") and any(key in raw for key in ("fine_tune_type", "lora_parameters"))


def _mlx_config(path: Path, raw: Mapping[str, Any]) -> AdapterConfig:
    """mlx-lm's configuration in PEFT's terms: W + scale · (a b)ᵀ, with DoRA's magnitudes as PEFT has them.

    mlx-lm up to 0.13 multiplied the scale by alpha / rank; later versions ignore an alpha that a recipe still
    holds. Those can be told apart by their names for the number of layers alone, if they changed it already.
    """
    kind = raw.get("fine_tune_type", "dora" if raw.get("use_dora") else "lora")
    if kind not in ("lora", "dora", "full"):
        raise InputError(
            f"got {kind!r}, expected lora, dora or full", at=f"{path}: fine_tune_type", fix=MLX_AGAIN
        )
    given = raw.get("lora_parameters")
    if kind != "full" and not isinstance(given, dict):
        raise InputError("lora_parameters is missing from mlx-lm's configuration", at=path, fix=MLX_AGAIN)
    parameters = _Fields(path, given if isinstance(given, dict) else {})
    rank, scale = 0, 1.0
    if kind != "full":
        for name in ("rank", "scale"):
            if parameters.raw.get(name) is None:
                raise InputError(f"lora_parameters has no {name}", at=path, fix=MLX_AGAIN)
        rank = parameters.number("rank", 0, least=1, whole=True)
        scale = parameters.number("scale", 0)
        alpha = parameters.number("alpha", rank)
        if alpha != rank and "num_layers" not in raw and "fine_tune_type" not in raw:
            raise InputError(
                f"mlx-lm's scale is {scale:g} by itself, or {scale * alpha / rank:g} if its alpha counts: it "
                "did up to version 0.13, and does not since",
                at=f"{path}: lora_parameters",
                fix="remove alpha; if mlx-lm 0.13 or older wrote it, multiply scale by alpha / rank",
            )
    return AdapterConfig(
        path=path,
        peft_type="LORA",
        r=rank,
        lora_alpha=scale * rank,
        use_rslora=False,
        use_dora=kind == "dora",
        lora_bias=False,
        bias="none",
        fan_in_fan_out=False,
        rank_pattern={},
        alpha_pattern={},
        init_lora_weights=True,
        target_modules=None,
        exclude_modules=None,
        target_parameters=(),
        layers_to_transform=None,
        layers_pattern=(),
        modules_to_save=(),
        trainable_token_indices=None,
        ensure_weight_tying=False,
        blocks=None,
        kasa=False,
        feedforward_modules=(),
        base_model_name_or_path=raw.get("model") or None,
        mlx=True,
    )


def _check_method(path: Path, method: str) -> None:
    if method in FOLDABLE:
        return
    if method in NOT_IN_WEIGHTS:
        raise InputError(f"{NOT_IN_WEIGHTS[method]}: it cannot be folded", at=path, fix=NOT_WEIGHTS)
    if method in ("NONE", ""):
        raise InputError("peft_type is missing", at=path, fix="give a PEFT adapter's folder")
    raise InputError(
        f"the PEFT method {method} is not folded here, only {', '.join(FOLDABLE)}", at=path, fix=MERGE_FIRST
    )


def _check_options(path: Path, raw: Mapping[str, Any]) -> None:
    for option, (problem, cure) in NOT_FOLDABLE_OPTIONS.items():
        if raw.get(option):
            raise InputError(f"{problem}: it cannot be folded", at=path, fix=cure)
    for option, problem in OPTIONS_OF_OTHERS.items():
        if raw.get(option):
            raise InputError(
                f"{problem}: it cannot be folded", at=path, fix=f"merge it with {MERGER[option]}"
            )
    _check_init(path, raw.get("init_lora_weights", True))


def _check_init(path: Path, value: Any) -> None:
    """Refuse an initialisation that changed the base, or may have."""
    init = str(value).lower()
    if init in LOST_BASE:
        raise InputError(LOST_BASE[init], at=f"{path}: init_lora_weights", fix=RESIDUAL_BASE)
    if init.startswith("pissa_niter"):
        raise InputError(
            f"{init!r} took a randomly approximated part out of the base, which cannot be computed again",
            at=f"{path}: init_lora_weights",
            fix=RESIDUAL_BASE,
        )
    if value is None or isinstance(value, bool) or value in KNOWN_INITS or init in KNOWN_INITS_OF_ANY_CASE:
        return
    raise InputError(
        f"got {value!r}, which PEFT 0.21 does not know: such an initialisation may have changed the base",
        at=f"{path}: init_lora_weights",
        fix="set it to true if the training left the base as it was; else save the adapter converted, or "
        "give the base that was changed with it (`--base`) and set it to true",
    )


class _Fields:
    """Typed access to a configuration, with errors that name the field."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path = path
        self.raw = raw

    def wrong(self, name: str, expected: str) -> InputError:
        return InputError(f"got {self.raw.get(name)!r}, expected {expected}", at=f"{self.path}: {name}")

    def _number(self, name: str, value: Any, least: float | None, whole: bool) -> Any:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise self.wrong(name, "an integer" if whole else "a number")
        if least is not None and value < least:
            raise self.wrong(name, f"at least {least}")
        return value

    def number(self, name: str, default: float, *, least: float | None = None, whole: bool = False) -> Any:
        return self._number(name, self.raw.get(name, default), least, whole)

    def patterns(self, name: str, *, least: float | None = None, whole: bool = False) -> dict[str, Any]:
        value = self.raw.get(name) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object of patterns")
        for pattern, entry in value.items():
            self._number(name, entry, least, whole)
            try:
                re.compile(ENDS.format(pattern))
            except (re.error, RecursionError, OverflowError):
                raise self.wrong(name, f"regular expressions; {pattern!r} is not one") from None
        return value

    def names(self, name: str) -> tuple[str, ...]:
        value = self.raw.get(name) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(name, "a list of names")
        return tuple(value)

    def modules(self, name: str) -> tuple[str, ...] | str | None:
        value = self.raw.get(name)
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError):
                raise self.wrong(name, "names or a regular expression") from None
        if value is None or isinstance(value, str):
            return value
        return self.names(name)

    def layers(self, name: str) -> tuple[int, ...] | None:
        value = self.raw.get(name)
        value = [value] if isinstance(value, int) else value
        if not value:
            return None
        if not isinstance(value, list) or any(type(entry) is not int for entry in value):
            raise self.wrong(name, "a list of layer numbers")
        return tuple(value)

    def tokens(self, value: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
        if value is None:
            return None
        if isinstance(value, dict):
            return {str(name): self._token_list(entry) for name, entry in value.items()}
        return self._token_list(value)

    def _token_list(self, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or any(type(entry) is not int or entry < 0 for entry in value):
            raise InputError(f"token indices are {value!r}, expected a list of numbers", at=self.path)
        return tuple(value)

    def blocks(self, value: Any) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
        if not isinstance(value, dict) or type(value.get("nblocks")) is not int or value["nblocks"] < 1:
            raise self.wrong("use_bdlora", "an object with `nblocks`")
        a, b = value.get("target_modules_bd_a") or [], value.get("target_modules_bd_b") or []
        return value["nblocks"], tuple(a), tuple(b)
