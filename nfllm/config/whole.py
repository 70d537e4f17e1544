"""The whole configuration: its sections together, from and to plain values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nfllm.config.checks import ConfigError, Value, check_keys, names_of, section_values, value_type
from nfllm.config.keys import (
    BEFORE,
    RETIRED,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    TelemetryConfig,
    TrainingConfig,
)
from nfllm.config.names import Source

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# A label that takes no part in the loss. The data layer writes it and the loss reads it.
IGNORED_LABEL = -100

_LATER_SECTIONS = ("objective",)  # an early run has none of their keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration, section by section."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    telemetry: TelemetryConfig = dataclasses.field(default_factory=TelemetryConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        chosen = self.model.attention_implementation
        if self.telemetry.entropy_every_step and chosen in ("xla", "cudnn"):
            raise ConfigError(
                "telemetry.entropy_every_step=True needs attention logits, which "
                f"model.attention_implementation={chosen!r} does not give; use 'auto', "
                "'explicit' or 'blocks', or probe with telemetry.every instead"
            )
        if self.optimizer.qk_clip is not None:
            self._check_qk_clip()
        if self.objective.entropy_weight and chosen in ("xla", "cudnn"):
            raise ConfigError(
                f"objective.entropy_weight={self.objective.entropy_weight} needs the rows of the "
                f"attention maps, which model.attention_implementation={chosen!r} does not keep; "
                "use 'auto', 'explicit' or 'blocks'"
            )

    def _check_qk_clip(self) -> None:
        model, limit = self.model, self.optimizer.qk_clip
        if model.attention_implementation in ("xla", "cudnn"):
            raise ConfigError(
                f"optimizer.qk_clip={limit} needs attention logits, which "
                f"model.attention_implementation={model.attention_implementation!r} does not give; "
                "use 'auto', 'explicit' or 'blocks'"
            )
        if model.qk_normalization != "none":
            raise ConfigError(
                f"optimizer.qk_clip={limit} has no effect on model.qk_normalization="
                f"{model.qk_normalization!r}, after which the size of queries and keys does not "
                "count; leave one of them out"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, recorded: bool = False) -> Config:
        """Builds and validates a config from nested mappings (a ConfigDict, or parsed JSON).

        Args:
          values: every key of every section.
          recorded: `values` were written by a run, perhaps before some key existed
            (`BEFORE`), or with a key that no longer exists (`RETIRED`).

        Raises:
          ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        sections = typing.get_type_hints(cls)
        if recorded:
            values = _as_now(values)
        check_keys(values, sections, "config")
        return cls(
            **{
                name: section(**section_values(values[name], section, name))
                for name, section in sections.items()
            }
        )

    def sources(self) -> dict[str, Source]:
        """Where each registered part was registered, by the key that names it."""
        found = {}
        for key, hint in typing.get_type_hints(type(self.model), include_extras=True).items():
            names, chosen = names_of(hint), getattr(self.model, key)
            source = names[chosen].source if names and chosen is not None else None
            if source is not None:
                found[f"model.{key}"] = source
        return found

    def to_dict(self) -> dict[str, dict[str, Value]]:
        """The nested plain dictionary that `from_dict` reads back."""
        return dataclasses.asdict(self)


def differences(old: Config, new: Config) -> dict[str, tuple[Value, Value]]:
    """Keys in which two configs differ, as `{"section.key": (old, new)}`."""
    before, after = old.to_dict(), new.to_dict()
    return {
        f"{section}.{key}": (before[section][key], value)
        for section, keys in after.items()
        for key, value in keys.items()
        if before[section][key] != value
    }


def get_config() -> ConfigDict:
    """The defaults of all keys, for `--config` and for the files in `configs/`."""
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    config = ConfigDict()
    for name, keys in Config().to_dict().items():
        types = typing.get_type_hints(type(getattr(Config(), name)))
        config[name] = ConfigDict(
            {
                key: placeholder(value_type(types[key])) if value is None else value
                for key, value in keys.items()
            }
        )
    return config.lock()


def _as_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values with today's keys."""
    found = {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" not in RETIRED}
        if isinstance(keys, Mapping)
        else keys
        for section, keys in values.items()
    }
    for name, value in BEFORE.items():
        section, _, key = name.partition(".")
        if section in _LATER_SECTIONS:
            found.setdefault(section, {})
        if isinstance(keys := found.get(section), dict):
            keys.setdefault(key, value)
    return found
