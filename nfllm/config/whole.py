"""The whole configuration: all sections, converted from and to plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nfllm.config.across import check_across
from nfllm.config.checks import Value, check_keys, field_types, names_of, section_values, value_type
from nfllm.config.earlier import with_added_keys
from nfllm.config.keys import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RemovalConfig,
    TelemetryConfig,
    TrainingConfig,
)
from nfllm.config.names import Source

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# A label that takes no part in the loss. The data layer writes it and the loss reads it.
IGNORED_LABEL = -100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration, section by section."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    removal: RemovalConfig = dataclasses.field(default_factory=RemovalConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    telemetry: TelemetryConfig = dataclasses.field(default_factory=TelemetryConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        check_across(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, recorded: bool = False) -> Config:
        """Builds and validates a config from nested mappings (a ConfigDict, or parsed JSON).

        Args:
          values: every key of every section.
          recorded: `values` were written by a run, which may lack keys that came later (`added`)
            or have keys that no longer exist (`RETIRED`).

        Raises:
          ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        sections = field_types(cls)
        if recorded:
            values = with_added_keys(values, sections)
        check_keys(values, sections, "config")
        return cls(
            **{
                name: section(**section_values(values[name], section, name))
                for name, section in sections.items()
            }
        )

    def sources(self) -> dict[str, Source]:
        """The `Source` of each registered part of the model, by key."""
        found = {}
        for key, hint in field_types(type(self.model)).items():
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
        types = field_types(type(getattr(Config(), name)))
        config[name] = ConfigDict(
            {
                key: placeholder(value_type(types[key])) if value is None else value
                for key, value in keys.items()
            }
        )
    return config.lock()
