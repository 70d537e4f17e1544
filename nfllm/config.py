"""The experiment's configuration as frozen, validated dataclasses.

`configs/default.py` holds every key with its default, its unit and its meaning; this module holds
the types and the limits. `Config.from_dict` is the only way in, and it rejects an unknown, missing
or impossible value by name before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Architecture = Literal["gpt2", "gpt_neox"]
Normalization = Literal["layernorm", "none", "rmsnorm", "dyt", "derf"]
Activation = Literal[
    "gelu",
    "gelu_tanh",
    "relu",
    "leaky_relu",
    "learnable_leaky_relu",
    "silu",
    "relu_squared",
    "helu",
    "identity",
]
DType = Literal["auto", "float32", "bfloat16", "float16"]

# A label that takes no part in the loss. The data layer writes it and the loss reads it.
IGNORED_LABEL = -100


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and a remedy."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """Ends an error about an unknown `name`: the nearest valid name, then all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(valid)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture."""

    architecture: Architecture
    num_layers: int
    num_heads: int
    embed_dim: int
    mlp_dim: int | None
    context_length: int
    normalization: Normalization
    final_normalization: Normalization
    qk_normalization: Normalization
    norm_epsilon: float
    activation: Activation
    negative_slope: float | None
    slope_sharing: Literal["layer", "model", "untied_global"] | None
    helu_margin: float | None
    attention_bias: Literal["none", "qk", "all"]
    mlp_bias: bool
    tie_embeddings: bool | None
    rotary_fraction: float | None
    rotary_base: float | None
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    init_std: float
    init_std_scaling: Literal["none", "width"]
    scan_layers: bool
    remat: bool

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width of the hidden layer of the MLP."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def ties_embeddings(self) -> bool:
        """Whether the output head is the token embedding."""
        return self.architecture == "gpt2" if self.tie_embeddings is None else self.tie_embeddings

    @property
    def slope(self) -> float:
        """Slope of the activation for negative inputs, or its start value where it is learned."""
        return 0.01 if self.negative_slope is None else self.negative_slope

    @property
    def margin(self) -> float:
        """HeLU's a: its gradient is 1 where x > -a."""
        return 0.05 if self.helu_margin is None else self.helu_margin

    @property
    def rotary_dim(self) -> int:
        """Number of leading features of each head that are rotated; 0 for learned positions."""
        if self.architecture == "gpt2":
            return 0
        fraction = 0.25 if self.rotary_fraction is None else self.rotary_fraction
        return int(self.head_dim * fraction)

    @property
    def block_init_std(self) -> float:
        """Standard deviation of the block matrices; `width` keeps 0.02 at width 768."""
        scale = (768 / self.embed_dim) ** 0.5 if self.init_std_scaling == "width" else 1.0
        return self.init_std * scale

    def __post_init__(self) -> None:
        _check_types(self, "model")
        for key in ("num_layers", "num_heads", "embed_dim", "context_length"):
            _at_least(self, "model", key, 1)
        if self.mlp_dim is not None:
            _at_least(self, "model", "mlp_dim", 1)
        for key in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            _between(self, "model", key, 0.0, 1.0)
        _positive(self, "model", "norm_epsilon")
        _positive(self, "model", "init_std")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} does not divide model.embed_dim="
                f"{self.embed_dim}; choose a divisor of {self.embed_dim}"
            )
        self._check_activation()
        self._check_positions()

    def _check_activation(self) -> None:
        if self.negative_slope is not None and self.activation not in (
            "leaky_relu",
            "learnable_leaky_relu",
        ):
            raise ConfigError(
                f"model.negative_slope={self.negative_slope} has no effect on model.activation="
                f"{self.activation!r}; set model.activation to 'leaky_relu' or "
                "'learnable_leaky_relu', or leave the slope unset"
            )
        if self.slope_sharing is not None and self.activation != "learnable_leaky_relu":
            raise ConfigError(
                f"model.slope_sharing={self.slope_sharing!r} has no effect on model.activation="
                f"{self.activation!r}; set model.activation to 'learnable_leaky_relu', or leave it "
                "unset"
            )
        if self.helu_margin is not None:
            if self.activation != "helu":
                raise ConfigError(
                    f"model.helu_margin={self.helu_margin} has no effect on model.activation="
                    f"{self.activation!r}; set model.activation to 'helu', or leave it unset"
                )
            _positive(self, "model", "helu_margin")

    def _check_positions(self) -> None:
        if self.architecture == "gpt2":
            for key in ("rotary_fraction", "rotary_base"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        f"model.{key}={getattr(self, key)} has no effect on model.architecture="
                        "'gpt2', whose positions are learned; use 'gpt_neox', or leave it unset"
                    )
            return
        if self.rotary_fraction is not None:
            _between(self, "model", "rotary_fraction", 0.0, 1.0, closed=True)
        if self.rotary_base is not None:
            _positive(self, "model", "rotary_base")
        if self.rotary_dim % 2 or self.rotary_dim == 0:
            raise ConfigError(
                f"model.rotary_fraction gives a rotary width of {self.rotary_dim} of head width "
                f"{self.head_dim}; rotation works on pairs, so choose a fraction that makes it "
                "even and at least 2"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus, its tokens, its windows and its validation split."""

    dataset: str
    split: str
    sources: str
    data_dir: str | None
    text_field: str | None
    malformed: Literal["error", "skip"]
    tokenizer: str
    vocab_size: int
    window: Literal["packed", "documents"]
    validation_split: Literal["hash", "slice", "field", "separate"]
    validation_fraction: float
    validation_field: str | None
    validation_values: str
    validation_source: str | None
    mask_end_of_text: bool

    def __post_init__(self) -> None:
        _check_types(self, "data")
        if not 257 <= self.vocab_size <= 65_536:
            raise ConfigError(
                f"data.vocab_size={self.vocab_size} is outside 257 to 65536 (256 bytes and the "
                "end-of-text token at least; at most what 16-bit token files hold); for a larger "
                "vocabulary set data.tokenizer to the path of a tokenizer.json"
            )
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1"
            )
        self._check_sources()
        self._check_validation()

    def _check_sources(self) -> None:
        local = self.dataset in ("python_source", "text_files")
        if local and not self.sources:
            raise ConfigError(
                f"data.dataset={self.dataset!r} needs data.sources: paths or globs, by commas"
            )
        if self.sources and not local:
            raise ConfigError(
                f"data.sources={self.sources!r} has no effect on data.dataset={self.dataset!r}; "
                "set data.dataset to 'text_files' or 'python_source', or leave it empty"
            )
        if self.text_field is not None and self.dataset in ("python_stdlib", "python_source"):
            raise ConfigError(
                f"data.text_field={self.text_field!r} has no effect on data.dataset="
                f"{self.dataset!r}, whose documents are whole files; leave it unset"
            )

    def _check_validation(self) -> None:
        for key, split in (("validation_field", "field"), ("validation_source", "separate")):
            if (self.validation_split == split) != (getattr(self, key) is not None):
                raise ConfigError(
                    f"data.{key}={getattr(self, key)!r} goes together with data.validation_split="
                    f"{split!r}, but that is {self.validation_split!r}; set both or neither"
                )
        if self.validation_values and self.validation_split != "field":
            raise ConfigError(
                f"data.validation_values={self.validation_values!r} has no effect on "
                f"data.validation_split={self.validation_split!r}; set that to 'field', or leave "
                "the values empty"
            )
        if self.validation_split == "separate" and self.dataset == "python_stdlib":
            raise ConfigError(
                "data.validation_split='separate' does not fit data.dataset='python_stdlib', which "
                "has one split; choose hash, slice or field"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule, its decay and its clipping."""

    variant: Literal["adamw", "hf_adamw"]
    learning_rate: float
    final_learning_rate: float
    schedule: Literal["polynomial", "cosine", "constant"]
    schedule_power: float
    warmup_steps: int | None
    warmup_fraction: float
    warmup_from_zero: bool
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decay_slopes: bool
    clip_norm: float
    accumulation_weighting: Literal["token", "micro_batch"]

    def __post_init__(self) -> None:
        _check_types(self, "optimizer")
        _positive(self, "optimizer", "learning_rate")
        _positive(self, "optimizer", "epsilon")
        _positive(self, "optimizer", "schedule_power")
        for key in ("beta1", "beta2"):
            _between(self, "optimizer", key, 0.0, 1.0)
        _between(self, "optimizer", "warmup_fraction", 0.0, 1.0, closed=True)
        _at_least(self, "optimizer", "weight_decay", 0)
        _at_least(self, "optimizer", "final_learning_rate", 0)
        if self.warmup_steps is not None:
            _at_least(self, "optimizer", "warmup_steps", 0)
        _at_least(self, "optimizer", "clip_norm", 0)
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(
                f"optimizer.final_learning_rate={self.final_learning_rate} exceeds "
                f"optimizer.learning_rate={self.learning_rate}; the schedule ends at the former, "
                "so lower it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch, seed, precision, and what happens to a step that is not finite."""

    steps: int
    batch_size: int
    gradient_accumulation: int | None
    seed: int
    dtype: DType
    non_finite: Literal["stop", "skip", "continue"]
    max_skipped_steps: int
    log_every: int
    compilation_cache: str | None

    def __post_init__(self) -> None:
        _check_types(self, "training")
        for key in ("steps", "batch_size", "log_every"):
            _at_least(self, "training", key, 1)
        _at_least(self, "training", "max_skipped_steps", 0)
        _at_least(self, "training", "seed", 0)
        if self.gradient_accumulation is None:
            return
        _at_least(self, "training", "gradient_accumulation", 1)
        if self.batch_size % self.gradient_accumulation:
            raise ConfigError(
                f"training.gradient_accumulation={self.gradient_accumulation} does not divide "
                f"training.batch_size={self.batch_size} (sequences per optimizer step, all devices "
                "and micro-batches together)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How often and over how much the validation loss is measured."""

    every: int
    batch_size: int
    max_windows: int | None

    def __post_init__(self) -> None:
        _check_types(self, "evaluation")
        _at_least(self, "evaluation", "every", 0)
        _at_least(self, "evaluation", "batch_size", 1)
        if self.max_windows is not None:
            _at_least(self, "evaluation", "max_windows", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """How often the attention entropy is probed, and on how many sequences."""

    every: int
    probe_windows: int

    def __post_init__(self) -> None:
        _check_types(self, "telemetry")
        _at_least(self, "telemetry", "every", 0)
        _at_least(self, "telemetry", "probe_windows", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often checkpoints are written and how many are kept."""

    every: int
    keep: int
    keep_every: int | None

    def __post_init__(self) -> None:
        _check_types(self, "checkpoint")
        _at_least(self, "checkpoint", "every", 0)
        _at_least(self, "checkpoint", "keep", 1)
        if self.keep_every is not None:
            _at_least(self, "checkpoint", "keep_every", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the step is put on devices."""

    strategy: Literal["pmap", "fsdp"]
    cpu_devices: int | None

    def __post_init__(self) -> None:
        _check_types(self, "parallel")
        if self.cpu_devices is not None:
            _at_least(self, "parallel", "cpu_devices", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration, section by section."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    telemetry: TelemetryConfig
    checkpoint: CheckpointConfig
    parallel: ParallelConfig

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Builds and validates a config from nested mappings (a ConfigDict, or parsed JSON).

        Raises:
          ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        sections = typing.get_type_hints(cls)
        _check_keys(values, sections, "config")
        return cls(
            **{
                name: section(**_section_values(values[name], section, name))
                for name, section in sections.items()
            }
        )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The nested plain dictionary that `from_dict` reads back."""
        return dataclasses.asdict(self)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys in which two configs differ, as `{"section.key": (old, new)}`."""
    before, after = old.to_dict(), new.to_dict()
    return {
        f"{section}.{key}": (before[section][key], value)
        for section, keys in after.items()
        for key, value in keys.items()
        if before[section][key] != value
    }


def _section_values(values: Any, section: type, name: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"config.{name} must be a group of keys, not {values!r}")
    fields = typing.get_type_hints(section)
    _check_keys(values, fields, name)
    return {
        key: float(value) if _wants_float(fields[key]) and type(value) is int else value
        for key, value in values.items()
    }


def _check_keys(values: Mapping[str, Any], valid: Iterable[str], where: str) -> None:
    valid = set(valid)
    for key in values:
        if key not in valid:
            raise ConfigError(f"unknown key {key!r} in {where}; {suggest(key, valid)}")
    missing = sorted(valid - set(values))
    if missing:
        raise ConfigError(
            f"{where} lacks the key {missing[0]!r}; start from configs/default.py, which "
            "has them all"
        )


def _wants_float(hint: Any) -> bool:
    return hint is float or float in typing.get_args(hint)


def _check_types(section: Any, name: str) -> None:
    for key, hint in typing.get_type_hints(type(section)).items():
        value = getattr(section, key)
        is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if is_union else (hint,)
        if not any(_is_a(value, option) for option in options):
            raise ConfigError(_type_message(f"{name}.{key}", value, options))


def _is_a(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint in (int, float):
        return type(value) is hint and (hint is int or math.isfinite(value))
    return isinstance(value, hint)


def _type_message(key: str, value: Any, options: Iterable[Any]) -> str:
    names = [n for o in options if typing.get_origin(o) is Literal for n in typing.get_args(o)]
    if names and isinstance(value, str):
        word = key.rpartition(".")[2]
        return f"unknown {word} {value!r} (key {key}); {suggest(value, names)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}={value} is not a finite number"
    expected = " or ".join(_option_name(option) for option in options)
    return f"{key}={value!r} is of type {type(value).__name__}, expected {expected}"


def _option_name(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(sorted(typing.get_args(option)))}"
    return "None" if option is types.NoneType else option.__name__


def _at_least(section: Any, name: str, key: str, low: float) -> None:
    value = getattr(section, key)
    if value < low:
        raise ConfigError(f"{name}.{key}={value} must be at least {low}")


def _positive(section: Any, name: str, key: str) -> None:
    value = getattr(section, key)
    if value <= 0:
        raise ConfigError(f"{name}.{key}={value} must be greater than 0")


def _between(
    section: Any, name: str, key: str, low: float, high: float, closed: bool = False
) -> None:
    value = getattr(section, key)
    if not (low <= value < high or (closed and value == high)):
        bracket = "]" if closed else ")"
        raise ConfigError(f"{name}.{key}={value} is outside [{low}, {high}{bracket}")
