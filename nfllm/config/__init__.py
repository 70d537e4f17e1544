"""The configuration as frozen, validated dataclasses.

`nfllm/config/keys.py` holds every key with its type, default, unit and meaning; the other
modules hold limits and messages. `Config.from_dict` builds a config, and rejects an unknown,
missing or impossible value by name before anything is compiled.
"""

from nfllm.config.checks import ConfigError, suggest
from nfllm.config.keys import (
    Architecture,
    CheckpointConfig,
    DataConfig,
    DType,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RemovalConfig,
    TelemetryConfig,
    TrainingConfig,
)
from nfllm.config.names import (
    ACTIVATION_NAMES,
    NORMALIZATION_NAMES,
    Activation,
    Normalization,
    Statistics,
)
from nfllm.config.whole import IGNORED_LABEL, Config, differences, get_config

__all__ = [
    "ACTIVATION_NAMES",
    "IGNORED_LABEL",
    "NORMALIZATION_NAMES",
    "Activation",
    "Architecture",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DType",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "Normalization",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RemovalConfig",
    "Statistics",
    "TelemetryConfig",
    "TrainingConfig",
    "differences",
    "get_config",
    "suggest",
]
