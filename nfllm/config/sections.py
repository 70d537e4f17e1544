"""The whole configuration, and its sections other than `model`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from nfllm.config.checks import (
    ConfigError,
    at_least,
    between,
    check_keys,
    check_types,
    positive,
    section_values,
)
from nfllm.config.model import ModelConfig

DType = Literal["auto", "float32", "bfloat16", "float16"]

# Keys of runs that were written before, which say nothing about what was trained.
_RETIRED = {"parallel": ("xla_flags",)}

# A label that takes no part in the loss. The data layer writes it and the loss reads it.
IGNORED_LABEL = -100


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
    document_separator: str | None = None

    def __post_init__(self) -> None:
        check_types(self, "data")
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
        for key in ("sources", "validation_source"):
            named = getattr(self, key)
            if local and named is not None and not named.replace(",", "").strip():
                raise ConfigError(
                    f"data.dataset={self.dataset!r} needs data.{key}: paths or globs, by commas, "
                    f"not {named!r}"
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

        if self.document_separator is not None and self.dataset != "text_files":
            raise ConfigError(
                f"data.document_separator={self.document_separator!r} has no effect on "
                f"data.dataset={self.dataset!r}; set that to 'text_files', or leave it unset"
            )
        if self.document_separator == "":
            raise ConfigError(
                "data.document_separator='' separates nothing; give a text such as "
                "'<|endoftext|>', or leave it unset"
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
        check_types(self, "optimizer")
        positive(self, "optimizer", "learning_rate")
        positive(self, "optimizer", "epsilon")
        positive(self, "optimizer", "schedule_power")
        for key in ("beta1", "beta2"):
            between(self, "optimizer", key, 0.0, 1.0)
        between(self, "optimizer", "warmup_fraction", 0.0, 1.0, closed=True)
        at_least(self, "optimizer", "weight_decay", 0)
        at_least(self, "optimizer", "final_learning_rate", 0)
        if self.warmup_steps is not None:
            at_least(self, "optimizer", "warmup_steps", 0)
        at_least(self, "optimizer", "clip_norm", 0)
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(
                f"optimizer.final_learning_rate={self.final_learning_rate} exceeds "
                f"optimizer.learning_rate={self.learning_rate}; the schedule decays to the "
                "former, so lower it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch, seed, precision, and what happens to a step that is not finite."""

    steps: int
    batch_size: int
    gradient_accumulation: int | None
    seed: int
    dtype: DType
    loss_tile_rows: int | None = None
    non_finite: Literal["stop", "skip", "continue"]
    max_skipped_steps: int
    log_every: int
    compilation_cache: str | None

    def __post_init__(self) -> None:
        check_types(self, "training")
        if self.dtype == "float16" and self.non_finite == "continue":
            raise ConfigError(
                "training.non_finite='continue' cannot be had with training.dtype='float16', whose "
                "loss scale is found by leaving out updates that are not finite; use 'skip', or "
                "another type"
            )
        for key in ("steps", "batch_size", "log_every"):
            at_least(self, "training", key, 1)
        at_least(self, "training", "max_skipped_steps", 0)
        at_least(self, "training", "seed", 0)
        if self.seed >= 2**63:
            raise ConfigError(f"training.seed={self.seed} must be below 2**63")
        if self.loss_tile_rows is not None:
            at_least(self, "training", "loss_tile_rows", 1)
        if self.gradient_accumulation is None:
            return
        at_least(self, "training", "gradient_accumulation", 1)
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
        check_types(self, "evaluation")
        at_least(self, "evaluation", "every", 0)
        at_least(self, "evaluation", "batch_size", 1)
        if self.max_windows is not None:
            at_least(self, "evaluation", "max_windows", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """How often the attention entropy is probed, and on how many sequences."""

    every: int
    probe_windows: int
    entropy_every_step: bool = False

    def __post_init__(self) -> None:
        check_types(self, "telemetry")
        at_least(self, "telemetry", "every", 0)
        at_least(self, "telemetry", "probe_windows", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often checkpoints are written and how many are kept."""

    every: int
    keep: int
    keep_every: int | None

    def __post_init__(self) -> None:
        check_types(self, "checkpoint")
        at_least(self, "checkpoint", "every", 0)
        at_least(self, "checkpoint", "keep", 1)
        if self.keep_every is not None:
            at_least(self, "checkpoint", "keep_every", 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the step is put on devices."""

    strategy: Literal["pmap", "fsdp"]
    cpu_devices: int | None

    def __post_init__(self) -> None:
        check_types(self, "parallel")
        if self.cpu_devices is not None:
            at_least(self, "parallel", "cpu_devices", 1)


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

    def __post_init__(self) -> None:
        chosen = self.model.attention_implementation
        if self.telemetry.entropy_every_step and chosen in ("xla", "cudnn"):
            raise ConfigError(
                "telemetry.entropy_every_step=True needs attention logits, which "
                f"model.attention_implementation={chosen!r} does not give; use 'auto', "
                "'explicit' or 'blocks', or probe with telemetry.every instead"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, recorded: bool = False) -> Config:
        """Builds and validates a config from nested mappings (a ConfigDict, or parsed JSON).

        Args:
          values: every key of every section.
          recorded: `values` were written by a run, perhaps one of before some key existed. A field
            with a default is such a key, and its default is what a run did before.

        Raises:
          ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        sections = typing.get_type_hints(cls)
        check_keys(values, sections, "config")
        retired = _RETIRED if recorded else {}
        return cls(
            **{
                name: section(
                    **section_values(
                        _without(values[name], retired.get(name, ())),
                        section,
                        name,
                        recorded=recorded,
                    )
                )
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


def _without(values: Any, retired: tuple[str, ...]) -> Any:
    return {key: values[key] for key in values if key not in retired} if retired else values
