"""The limits of each section's values: an error names the key, the value and a remedy.

Those of the section `model` are in `model_limits`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from nfllm.config.checks import (
    ConfigError,
    at_least,
    between,
    check_types,
    no_effect,
    positive,
    suggest,
)
from nfllm.config.recipes import RECIPES
from nfllm.config.removal import read_order

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nfllm.config.keys import (
        CheckpointConfig,
        DataConfig,
        EvaluationConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ParallelConfig,
        RemovalConfig,
        TelemetryConfig,
        TrainingConfig,
    )

LOGGERS = ("tensorboard", "wandb")


def check_data(data: DataConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(data, "data")
    if not data.dataset.strip():
        raise ConfigError(
            f"data.dataset={data.dataset!r} names no dataset; leave it at 'python_stdlib', or "
            "name another"
        )
    if not 257 <= data.vocab_size <= 65_536:
        raise ConfigError(
            f"data.vocab_size={data.vocab_size} is outside 257 to 65536 (at least 256 "
            "bytes and the end-of-text token; at most what 16-bit token files can hold); for a "
            "larger vocabulary set data.tokenizer to the path of a tokenizer.json"
        )
    if not 0 < data.validation_fraction < 1:
        raise ConfigError(
            f"data.validation_fraction={data.validation_fraction} must lie between 0 and 1"
        )
    _check_sources(data)
    _check_validation(data)


def _check_sources(data: DataConfig) -> None:
    local = data.dataset in ("python_source", "text_files")
    for key in ("sources", "validation_source"):
        named = getattr(data, key)
        if local and named is not None and not named.replace(",", "").strip():
            raise ConfigError(
                f"data.dataset={data.dataset!r} needs data.{key}: paths or globs, separated "
                f"by commas, not {named!r}"
            )
    if data.sources and not local:
        raise ConfigError(
            f"data.sources={data.sources!r} has no effect with data.dataset={data.dataset!r}; "
            "set data.dataset to 'text_files' or 'python_source', or leave data.sources empty"
        )
    if data.text_field is not None and data.dataset in ("python_stdlib", "python_source"):
        raise ConfigError(
            f"data.text_field={data.text_field!r} has no effect with data.dataset="
            f"{data.dataset!r}, whose documents are whole files; leave data.text_field unset"
        )

    if data.document_separator is not None and data.dataset != "text_files":
        raise ConfigError(
            f"data.document_separator={data.document_separator!r} has no effect with "
            f"data.dataset={data.dataset!r}; set that key to 'text_files', or leave the separator "
            "unset"
        )
    if data.document_separator == "":
        raise ConfigError(
            "data.document_separator='' separates nothing; give a text such as "
            "'<|endoftext|>', or leave the separator unset"
        )


def _check_validation(data: DataConfig) -> None:
    for key, split in (("validation_field", "field"), ("validation_source", "separate")):
        if (data.validation_split == split) != (getattr(data, key) is not None):
            raise ConfigError(
                f"data.{key}={getattr(data, key)!r} goes together with data.validation_split="
                f"{split!r}, but that is {data.validation_split!r}; set both or neither"
            )
    if data.validation_values and data.validation_split != "field":
        raise ConfigError(
            f"data.validation_values={data.validation_values!r} has no effect with "
            f"data.validation_split={data.validation_split!r}; set that key to 'field', or leave "
            "the values empty"
        )
    if data.validation_values and not data.validation_values.replace(",", "").strip():
        raise ConfigError(
            f"data.validation_values={data.validation_values!r} names no value; name some, "
            "separated by commas, or leave it empty for a choice by hash"
        )
    if data.validation_split == "separate" or data.validation_values:
        beside = f"with data.validation_split={data.validation_split!r}"
        beside += " and named values" if data.validation_values else ""
        remedy = "set that key to 'hash' or 'slice'"
        no_effect(data, "data", _defaults(data, "validation_fraction"), beside, remedy)
    if data.validation_split == "separate" and data.dataset == "python_stdlib":
        raise ConfigError(
            "data.validation_split='separate' does not fit data.dataset='python_stdlib', which "
            "has one split; choose hash, slice or field"
        )


def check_objective(objective: ObjectiveConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(objective, "objective")
    at_least(objective, "objective", "entropy_weight", 0)
    at_least(objective, "objective", "entropy_margin", 0)
    between(objective, "objective", "entropy_threshold", 0.0, 1.0, closed=True)
    if objective.entropy_weight:
        return
    beside, remedy = "with objective.entropy_weight=0", "give that key a value such as 1e-5"
    no_effect(objective, "objective", _defaults(objective), beside, remedy)


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(optimizer, "optimizer")
    positive(optimizer, "optimizer", "learning_rate")
    positive(optimizer, "optimizer", "epsilon")
    positive(optimizer, "optimizer", "schedule_power")
    for key in ("beta1", "beta2", "muon_momentum"):
        between(optimizer, "optimizer", key, 0.0, 1.0)
    between(optimizer, "optimizer", "warmup_fraction", 0.0, 1.0, closed=True)
    at_least(optimizer, "optimizer", "weight_decay", 0)
    at_least(optimizer, "optimizer", "final_learning_rate", 0)
    if optimizer.warmup_steps is not None:
        at_least(optimizer, "optimizer", "warmup_steps", 0)
    at_least(optimizer, "optimizer", "clip_norm", 0)
    if optimizer.qk_clip is not None:
        positive(optimizer, "optimizer", "qk_clip")
    decays = optimizer.schedule != "constant"
    if decays and optimizer.final_learning_rate > optimizer.learning_rate:
        raise ConfigError(
            f"optimizer.final_learning_rate={optimizer.final_learning_rate} exceeds "
            f"optimizer.learning_rate={optimizer.learning_rate}; the schedule decays, "
            "so lower optimizer.final_learning_rate"
        )
    _check_unused(optimizer)


def _check_unused(optimizer: OptimizerConfig) -> None:
    for switch, needed, keys in (
        ("variant", "muon", ("muon_momentum", "muon_per_head")),
        ("schedule", "polynomial", ("schedule_power",)),
        ("warmup_steps", None, ("warmup_fraction",)),
    ):
        if (chosen := getattr(optimizer, switch)) != needed:
            beside = f"with optimizer.{switch}={chosen!r}"
            remedy = f"set that key to {needed!r}"
            no_effect(optimizer, "optimizer", _defaults(optimizer, *keys), beside, remedy)


def check_training(training: TrainingConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(training, "training")
    if training.dtype == "float16" and training.non_finite == "continue":
        raise ConfigError(
            "training.non_finite='continue' does not work with training.dtype='float16', whose "
            "loss scale adapts by leaving out updates that are not finite; use 'skip', or "
            "another dtype"
        )
    for key in ("steps", "batch_size", "log_every"):
        at_least(training, "training", key, 1)
    if training.steps >= 2**31:
        raise ConfigError(
            f"training.steps={training.steps} must be below 2**31: a device counts steps in 32 bits"
        )
    at_least(training, "training", "max_skipped_steps", 0)
    at_least(training, "training", "seed", 0)
    if training.seed >= 2**32:
        raise ConfigError(
            f"training.seed={training.seed} must be below 2**32: the parameters of larger seeds "
            "start like those of smaller ones"
        )
    if training.init_skip and training.init_from is None:
        raise ConfigError(
            f"training.init_skip={training.init_skip!r} has no effect without training.init_from; "
            "name the run to start from, or leave init_skip empty"
        )
    if training.init_from == "":
        raise ConfigError("training.init_from='' names no run; give a path, or leave the key unset")
    if training.recipe is not None and training.recipe not in RECIPES:
        raise ConfigError(
            f"unknown recipe {training.recipe!r} in training.recipe; "
            f"{suggest(training.recipe, RECIPES)}"
        )
    if training.loss_tile_rows is not None:
        at_least(training, "training", "loss_tile_rows", 1)
    if training.gradient_accumulation is None:
        return
    at_least(training, "training", "gradient_accumulation", 1)
    if training.batch_size % training.gradient_accumulation:
        raise ConfigError(
            f"training.gradient_accumulation={training.gradient_accumulation} does not divide "
            f"training.batch_size={training.batch_size} (sequences per optimizer step, all devices "
            "and micro-batches together)"
        )


def check_removal(removal: RemovalConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(removal, "removal")
    at_least(removal, "removal", "gap", 1)
    at_least(removal, "removal", "taper_steps", 0)
    at_least(removal, "removal", "scale_weight", 0)
    read_order(removal)
    if removal.start is not None:
        at_least(removal, "removal", "start", 1)
        return
    unused = _defaults(removal, "gap", "order", "taper_steps")
    remedy = "give the step of the first removal"
    no_effect(removal, "removal", unused, "without removal.start", remedy)


def check_evaluation(evaluation: EvaluationConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(evaluation, "evaluation")
    at_least(evaluation, "evaluation", "every", 0)
    at_least(evaluation, "evaluation", "batch_size", 1)
    if evaluation.max_windows is not None:
        at_least(evaluation, "evaluation", "max_windows", 1)


def check_telemetry(telemetry: TelemetryConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(telemetry, "telemetry")
    at_least(telemetry, "telemetry", "every", 0)
    at_least(telemetry, "telemetry", "probe_windows", 1)
    for name in logger_names(telemetry.loggers):
        if name not in LOGGERS:
            raise ConfigError(
                f"unknown logger {name!r} in telemetry.loggers={telemetry.loggers!r}; "
                f"{suggest(name, LOGGERS)}"
            )


def logger_names(loggers: str) -> list[str]:
    """The names in `telemetry.loggers`, each once."""
    return list(dict.fromkeys(name.strip() for name in loggers.split(",") if name.strip()))


def check_checkpoint(checkpoint: CheckpointConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(checkpoint, "checkpoint")
    at_least(checkpoint, "checkpoint", "every", 0)
    at_least(checkpoint, "checkpoint", "keep", 1)
    if checkpoint.keep_every is not None:
        at_least(checkpoint, "checkpoint", "keep_every", 1)


def check_parallel(parallel: ParallelConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(parallel, "parallel")
    if parallel.cpu_devices is not None:
        at_least(parallel, "parallel", "cpu_devices", 1)


def _defaults(section: DataclassInstance, *keys: str) -> dict[str, object]:
    """The defaults of these keys of a section, or of all."""
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    return {key: defaults[key] for key in keys or defaults}
