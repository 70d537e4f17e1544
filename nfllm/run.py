"""Runs as objects: loaded for analysis, and saved when they were changed."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from etils import epath

from nfllm import rundir
from nfllm.config import Config
from nfllm.data.tokenizer import Tokenizer
from nfllm.rundir import RunError
from nfllm.rundir.metrics import Metrics, read_metrics

if TYPE_CHECKING:
    from nfllm.data.batches import Batch
    from nfllm.data.dataset import Dataset
    from nfllm.model.decoder import Decoder
    from nfllm.model.parameters import Params


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A run directory in memory.

    Attributes:
      path: the run directory.
      step: number of optimizer steps that `params` were trained for.
      model: the decoder, computing in float32.
      params: its parameters, a nested dictionary of float32 JAX arrays; blocks are stacked,
        [L, ...].
      config: the config of the run; for an imported model only `config.model` is known.
      metrics: the lines of metrics.jsonl.
    """

    path: epath.Path
    step: int
    model: Decoder
    params: Params
    config: Config
    metrics: Metrics

    def __repr__(self) -> str:
        model = self.config.model
        sizes = f"{model.num_layers} layers, {model.num_heads} heads, width {model.embed_dim}"
        kind = f"{model.architecture}, {model.normalization}, {model.activation}"
        return f"Run('{self.path}', step {self.step:,}: {kind}, {sizes})"

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back.

        Raises:
          RunError: the run has no readable tokenizer, for example because its checkpoint was
            imported without a `tokenizer.json`.
        """
        path = self.path / rundir.TOKENIZER_FILE
        try:
            return Tokenizer.load(path)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read ({error}); give token ids, or put there the tokenizer.json "
                "that the model was trained with"
            ) from error

    def dataset(self) -> Dataset:
        """The training and validation data of the run.

        If this machine does not have the data yet, it is prepared from the sources in the config.

        Raises:
          RunError: the data has changed since training, or is unknown because the checkpoint was
            imported.
          ConfigError: the sources are missing.
        """
        from nfllm import data

        record = rundir.read_record(self.path)
        if record.is_imported:
            raise RunError(
                f"{self.path} holds an imported checkpoint, whose data is unknown; make your own "
                "batches of token ids [B, T]"
            )
        dataset = data.load(self.config.data, self.config.model.context_length)
        expected = record.data_fingerprint
        if dataset.fingerprint != expected:
            raise RunError(
                f"{self.path} was trained on data with fingerprint {expected[:12]}, but the data "
                f"now has {dataset.fingerprint[:12]}; restore the corpus, or make your own batches"
            )
        return dataset

    def validation_batches(
        self, batch_size: int = 32, *, max_windows: int | None = None
    ) -> list[Batch]:
        """Batches of the run's validation split, for `nfllm.analyze`.

        Args:
          batch_size: windows in a batch; the last batch is padded with rows without labels.
          max_windows: maximum number of windows, evenly spread over the split; None for all.

        Raises:
          RunError, ConfigError: as `dataset`.
          ValueError: `batch_size` or `max_windows` is not positive.
        """
        from nfllm.data.batches import evaluation_batches

        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if max_windows is not None and max_windows < 1:
            raise ValueError(f"max_windows={max_windows} must be at least 1")
        dataset = self.dataset()
        found = evaluation_batches(
            dataset.validation, batch_size, ignored_id=dataset.ignored_id, max_windows=max_windows
        )
        return list(found)


def steps(path: epath.PathLike) -> list[int]:
    """Steps of the checkpoints in a run directory, oldest first, for `load_run(path, step)`.

    Raises:
      RunError: there is no run at `path`.

    Example:
      >>> for step in steps("runs/default"):
      ...     run = load_run("runs/default", step=step)
    """
    from orbax.checkpoint import PyTreeCheckpointHandler

    from nfllm.trainer.checkpoint_files import open_reader

    directory = epath.Path(path)
    rundir.read_record(directory)
    checkpoints = directory / rundir.CHECKPOINTS_DIR
    if not checkpoints.exists():
        return []
    with open_reader(checkpoints, PyTreeCheckpointHandler) as reader:
        return sorted(reader.all_steps())


def save_run(
    run: Run, path: epath.PathLike, *, how: str = "changed", **fields: object
) -> epath.Path:
    """Writes a run that was derived from another, as by `nfllm.freeze_norms` or `nfllm.fold`.

    It has no optimizer state: it can be loaded, measured and exported, and its weights can be
    trained with `training.init_from`. Its `config.json` names `run.path` and its step as origin.

    Args:
      run: the run, with the parameters to write.
      path: a new directory.
      how: what was done to the parameters, in a word or two; also the name of the event in the
        metrics.
      **fields: further fields of that event.

    Returns:
      The directory.

    Raises:
      RunError: the directory is not empty, or `run.path` cannot be read.
    """
    from nfllm.trainer.checkpoints import restore_params
    from nfllm.trainer.derived import new_directory, write_derived
    from nfllm.trainer.warm_start import fingerprint

    directory = new_directory(path)
    _, theirs = restore_params(run.path, run.step)
    origin = rundir.Origin(str(run.path), run.step, fingerprint(theirs), (how,))
    event = {"event": how, "message": f"{how}: {origin}", **fields}
    return write_derived(directory, run.path, run.config, run.params, origin, event)


def load_run(path: epath.PathLike, step: int | None = None) -> Run:
    """A checkpoint of a run directory, with its model, tokenizer and metrics.

    Args:
      path: the run directory, local or `gs://`.
      step: step of the checkpoint, one of `nfllm.steps(path)`; by default the newest undamaged one.

    Returns:
      The run; its model computes in float32.

    Raises:
      RunError: there is no run at `path`, it has no checkpoint of that step, or the checkpoint is
        damaged; without `step`, no checkpoint can be read.

    Example:
      >>> run = load_run("runs/default")
      >>> run.tokenizer.decode(run.tokenizer.encode("def f(x):"))
      'def f(x):'
    """
    import jax

    from nfllm.model.decoder import Decoder
    from nfllm.trainer.checkpoints import restore_params

    directory = rundir.run_directory(path)
    record = rundir.read_record(directory)
    step, params = restore_params(directory, step)
    # The attention implementation of training may not run on this machine, or not in float32.
    model = dataclasses.replace(record.config.model, attention_implementation="auto")
    return Run(
        path=directory,
        step=step,
        model=Decoder(model, record.vocab_size),
        params=jax.tree.map(jax.numpy.asarray, params),
        config=record.config,
        metrics=read_metrics(directory),
    )
