"""Run directories for parameters that were derived from another run's without training."""

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
    """The directory `path`, which must not exist or be empty.

    Raises:
      RunError: it is not empty.
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

    It has no optimizer state: it can be loaded, measured and exported, and its weights can be
    trained with `training.init_from`.

    Args:
      path: a new directory.
      source: the run that the parameters come from; its tokenizer and corpus card are copied.
      config: the config of the source, with the model section of `params`.
      params: the parameters.
      origin: where they come from.
      event: fields of the only event in its metrics, including `event` and `message`.

    Raises:
      RunError: the directory is not empty, or cannot be written.
    """
    directory, record = new_directory(path), read_record(source)
    directory.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = SavedState.of_params(origin.step, params)
    with Checkpoints(directory, config.checkpoint) as checkpoints:
        checkpoints.save(state, record.data_fingerprint)
    for name in (TOKENIZER_FILE, CORPUS_FILE):
        if (file := run_directory(source) / name).exists():
            with file.open("rb") as old, (directory / name).open("wb") as new:
                shutil.copyfileobj(old, new)
    with MetricsWriter(directory) as metrics:
        metrics.write("event", origin.step, **event)
    # Written last: a directory without config.json does not count as a run.
    vocab_size, fingerprint = record.vocab_size, record.data_fingerprint
    write_record(directory, new_record(config, vocab_size, fingerprint, params, origin))
    return directory
