"""A run directory for parameters that were made of another run's, without a step of training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from nfllm.config import Config
from nfllm.rundir import (
    CORPUS_FILE,
    TOKENIZER_FILE,
    Origin,
    RunError,
    read_record,
    run_directory,
    write_record,
)
from nfllm.rundir.metrics import MetricsWriter
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.record import new_record
from nfllm.training.state import SavedState


def new_directory(path: epath.PathLike) -> epath.Path:
    """The directory, which is not there yet or is empty.

    Raises:
      RunError: it holds something.
    """
    directory = run_directory(path)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunError(f"{directory} exists and is not empty; name a new directory")
    return directory


def write_derived(
    path: epath.PathLike,
    source: epath.PathLike,
    config: Config,
    params: Any,
    origin: Origin,
    event: Mapping[str, Any],
) -> epath.Path:
    """Writes a run whose parameters come from the run `source`, and returns its directory.

    It has no optimizer: it is loaded, measured and exported, and training starts from it with
    `training.init_from`.

    Args:
      path: a new directory.
      source: the run that the parameters were made of, whose tokenizer and corpus card go along.
      config: that of the source, with the model of `params`.
      params: the parameters.
      origin: where they come from.
      event: fields of the one event in its metrics; `event` and `message` among them.

    Raises:
      RunError: the directory holds something, or cannot be written.
    """
    directory, record = new_directory(path), read_record(source)
    directory.mkdir(parents=True, exist_ok=True)
    state = SavedState(
        step=jnp.int32(origin.step),
        skipped=jnp.zeros((), jnp.int32),
        params=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params),
        opt_state=(),
        loss_scale=None,
    )
    with Checkpoints(directory, config.checkpoint) as checkpoints:
        checkpoints.save(state, record.data_fingerprint)
    for name in (TOKENIZER_FILE, CORPUS_FILE):
        if (file := run_directory(source) / name).exists():
            with file.open("rb") as old, (directory / name).open("wb") as new:
                shutil.copyfileobj(old, new)
    with MetricsWriter(directory) as metrics:
        metrics.write("event", origin.step, **event)
    # Last: a directory without a record is no run.
    vocab_size, fingerprint = record.vocab_size, record.data_fingerprint
    write_record(directory, new_record(config, vocab_size, fingerprint, params, origin))
    return directory
