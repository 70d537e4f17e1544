"""The whole configuration: its sections together, from and to plain values."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nfllm.config.checks import ConfigError, check_keys, section_values, value_type
from nfllm.config.keys import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TelemetryConfig,
    TrainingConfig,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# A label that takes no part in the loss. The data layer writes it and the loss reads it.
IGNORED_LABEL = -100

# What a run did before a key existed.
BEFORE: dict[str, Any] = {
    "data.document_separator": None,
    "model.attention_implementation": "explicit",
    "telemetry.entropy_every_step": False,
    "telemetry.loggers": "",
    "training.loss_tile_rows": None,
}
# Keys that a run may have recorded, and that say nothing of what it trained.
RETIRED = ("parallel.xla_flags",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration, section by section."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, recorded: bool = False) -> Config:
        """Builds and validates a config from nested mappings (a ConfigDict, or parsed JSON).

        Args:
          values: every key of every section.
          recorded: `values` were written by a run, perhaps one of before some key existed
            (`BEFORE`), or of when there was one more (`RETIRED`).

        Raises:
          ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
        """
        sections = typing.get_type_hints(cls)
        check_keys(values, sections, "config")
        if recorded:
            values = {name: _as_now(name, keys) for name, keys in values.items()}
        return cls(
            **{
                name: section(**section_values(values[name], section, name))
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


def _as_now(section: str, values: Any) -> Any:
    """The recorded values of a section with today's keys."""
    if not isinstance(values, Mapping):
        return values
    kept = {key: value for key, value in values.items() if f"{section}.{key}" not in RETIRED}
    for name, value in BEFORE.items():
        home, _, key = name.partition(".")
        if home == section:
            kept.setdefault(key, value)
    return kept
