"""The files that describe a new run, and the check whether a run can be resumed with a config."""

from __future__ import annotations

import json
import os

from etils import epath

from nfllm.config import Config, differences
from nfllm.config.checks import Value
from nfllm.config.paths import make_writable
from nfllm.data.records import printable
from nfllm.model.parameters import Params, count_parameters
from nfllm.rundir import (
    CHECKPOINTS_DIR,
    CORPUS_FILE,
    RECORD_FILE,
    TOKENIZER_FILE,
    Origin,
    RunError,
    RunRecord,
    read_record,
    write_record,
)
from nfllm.trainer.program import Program
from nfllm.training.optimizer import split_by_decay
from nfllm.training.schedules import make_schedule
from nfllm.version import nfllm_version

# These change the speed of a run, and its results only by rounding.
_SPEED_KEYS = (
    "data.data_dir",
    "model.attention_implementation",
    "model.scan_layers",
    "model.remat",
    "training.loss_tile_rows",
    "training.compilation_cache",
)
# These may differ when a run is resumed: they change what is measured and kept, and the length of
# training (`training.steps` stretches the rest of the learning-rate schedule). The event `resumed`
# names each change.
_FREE_SECTIONS = ("evaluation", "telemetry", "checkpoint", "parallel")
_FREE_KEYS = (
    *_SPEED_KEYS,
    "training.steps",
    "training.log_every",
    "training.non_finite",
    "training.max_skipped_steps",
    "training.recipe",
)


def check_writable(run: epath.Path) -> None:
    """Makes the run directory and that of its checkpoints; sees that Orbax can write them.

    Raises:
      RunError: its name is not valid UTF-8.
      ConfigError: one cannot be made or written.
    """
    if (name := printable(os.fspath(run))) != os.fspath(run):
        raise RunError(
            f"--workdir {name} is not valid UTF-8, which Orbax needs; choose another directory"
        )
    for directory in (run, run / CHECKPOINTS_DIR):
        make_writable(directory, "--workdir")


def check_resumable(run: epath.Path, config: Config) -> Config | None:
    """The config of an earlier run in `run` that `config` may resume; None for a new run.

    Raises:
      RunError: the configs differ in a key that changes what is trained.
    """
    if not (run / RECORD_FILE).exists():
        return None
    earlier = read_record(run).config
    changed = differences(earlier, config)
    fixed = {
        key: values
        for key, values in changed.items()
        if key not in _FREE_KEYS and key.partition(".")[0] not in _FREE_SECTIONS
    }
    if fixed:
        listed = ", ".join(
            f"{key}: {old!r} there, {new!r} here" for key, (old, new) in fixed.items()
        )
        raise RunError(
            f"{run} holds a run of another config ({listed}); give the same values to continue "
            "it, or another --workdir for a new run"
        )
    return earlier


def describe_changes(earlier: Config, config: Config, step: int, skipped: int = 0) -> str:
    """The changes of a run that is resumed at `step`, in words, for its event `resumed`.

    `skipped` steps made no update, and the schedule counts updates. For example " with
    training.steps=200 (was 100); the learning rate goes from ... at step 100 to ... at step 101";
    empty without changes.
    """
    changed = differences(earlier, config)
    if not changed:
        return ""
    listed = ", ".join(f"{key}={new!r} (was {old!r})" for key, (old, new) in changed.items())
    if "training.steps" not in changed or step == skipped:
        return f" with {listed}"
    before, after = (
        float(make_schedule(c.optimizer, c.training.steps)(update))
        for c, update in ((earlier, step - skipped - 1), (config, step - skipped))
    )
    return (
        f" with {listed}; the learning rate goes from {before:.2g} at step {step} to {after:.2g} "
        f"at step {step + 1}"
    )


def measured_differently(old: Config, new: Config) -> dict[str, tuple[Value, Value]]:
    """The `differences` of two configs that change results by more than rounding."""
    return {
        key: values
        for key, values in differences(old, new).items()
        if key not in (*_SPEED_KEYS, "training.log_every")
        and not key.startswith(("parallel.", "checkpoint."))
    }


def new_record(
    config: Config, vocab_size: int, data_fingerprint: str, params: Params, origin: Origin | None
) -> RunRecord:
    """The record of parameters that are trained, or were made, by this version."""
    decayed, undecayed = split_by_decay(params, decay_slopes=config.optimizer.decay_slopes)
    return RunRecord(
        config=config,
        vocab_size=vocab_size,
        num_parameters=count_parameters(params),
        data_fingerprint=data_fingerprint,
        decayed_parameters=decayed,
        undecayed_parameters=undecayed,
        nfllm_version=nfllm_version(),
        origin=origin,
    )


def write_run(
    run: epath.Path, program: Program, params: Params, origin: Origin | None = None
) -> None:
    """Writes config, tokenizer and corpus card: what is needed to load and judge the run."""
    dataset = program.dataset
    dataset.tokenizer.save(run / TOKENIZER_FILE)
    (run / CORPUS_FILE).write_text(json.dumps(dataset.card, indent=1) + "\n")
    vocab_size = dataset.tokenizer.vocab_size
    write_record(run, new_record(program.config, vocab_size, dataset.fingerprint, params, origin))
