"""The experiment's configuration as frozen, validated dataclasses.

`configs/default.py` holds every key with its default, its unit and its meaning; this package holds
the types and the limits. `Config.from_dict` is the only way in, and it rejects an unknown, missing
or impossible value by name before anything is compiled.
"""

from nfllm.config.checks import ConfigError, suggest
from nfllm.config.model import Activation, Architecture, ModelConfig, Normalization
from nfllm.config.sections import (
    IGNORED_LABEL,
    CheckpointConfig,
    Config,
    DataConfig,
    DType,
    EvaluationConfig,
    OptimizerConfig,
    ParallelConfig,
    TelemetryConfig,
    TrainingConfig,
    differences,
)

__all__ = [
    "IGNORED_LABEL",
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
    "OptimizerConfig",
    "ParallelConfig",
    "TelemetryConfig",
    "TrainingConfig",
    "differences",
    "suggest",
]
