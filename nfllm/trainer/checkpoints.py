"""Checkpoints of the training state through Orbax: atomic, verified, on any number of devices.

The state is never stacked by device, so it restores into any sharding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from nfllm.analysis.arrays import as_integer
from nfllm.config import CheckpointConfig, Config
from nfllm.model.parameters import Params
from nfllm.rundir import CHECKPOINTS_DIR, RunError, resolve, run_directory
from nfllm.trainer import abandoned, peers
from nfllm.trainer.checkpoint_files import (
    FORMAT_VERSION,
    NOTES,
    STATE,
    STEP_PREFIX,
    check_files,
    check_format,
    check_sums,
    describe_damage,
    named_checksums,
    open_reader,
    read_notes,
    read_params,
    reason,
    with_checksum,
    writers,
)
from nfllm.trainer.retention import make_retention
from nfllm.training.state import SavedState


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run: the run directory.
      config: how many are kept.
      earlier: the config of the command that the run is resumed from, if it is.

    Example:
      >>> import nfllm
      >>> config = nfllm.load_run("runs/default").config
      >>> with Checkpoints("runs/default", config.checkpoint) as checkpoints:
      ...     checkpoints.steps()
      [0]
    """

    def __init__(
        self,
        run: epath.PathLike,
        config: CheckpointConfig,
        earlier: Config | None = None,
    ) -> None:
        self.fallbacks: list[str] = []
        self._broken: set[int] = set()
        self._directory = epath.Path(run) / CHECKPOINTS_DIR
        with open_reader(self._directory, ocp.StandardCheckpointHandler) as reader:
            present = reader.all_steps()
        before = config if earlier is None else earlier.checkpoint
        # On a CPU, a save in the background would read buffers that were donated to the next step.
        background = jax.default_backend() != "cpu"
        self._manager = ocp.CheckpointManager(
            resolve(self._directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=make_retention(config, before, present),
                enable_async_checkpointing=background,
                step_prefix=STEP_PREFIX,
                cleanup_tmp_directories=True,  # left behind by interrupted saves
            ),
            handler_registry=writers(),
        )

    def __enter__(self) -> Checkpoints:
        # For the whole block: a thread may fail after `save` has returned and before `wait`.
        abandoned.hush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        closing = (
            contextlib.suppress(Exception) if error else self._explained("the newest checkpoint")
        )
        try:
            with closing:
                self._manager.close()
        finally:
            if error is None:
                abandoned.unhush()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: SavedState, data_fingerprint: str) -> None:
        """Writes the state; the checkpoint gets its final name only when it is complete.

        On an accelerator it is written in the background: `wait` or the next save raises errors.

        Raises:
          RunError: this checkpoint or the previous one cannot be written, for example because the
            disk is full; earlier ones are kept.
        """
        step = int(state.step)
        peers.progress(f"saving step {step}")
        for damaged in self._broken.intersection(self._manager.all_steps()):
            self._manager.delete(damaged)  # it would count among the `keep` newest
        self._broken.clear()
        if step in self._manager.all_steps():
            return
        notes = {
            "format_version": FORMAT_VERSION,
            "data_fingerprint": data_fingerprint,
            "checksums": named_checksums(state),
        }
        arguments = ocp.args.Composite(
            **{
                STATE: ocp.args.StandardSave(state),
                NOTES: ocp.args.JsonSave(with_checksum(notes)),
            }
        )
        with self._explained(f"the checkpoint of step {step}"):
            self._manager.save(step, args=arguments, force=True)

    def wait(self) -> None:
        """Waits until the last save is completely on storage.

        Raises:
          RunError: it cannot be written.
        """
        with self._explained("the newest checkpoint"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # storage raises errors of many types
            raise RunError(
                f"{what} could not be written into {self._directory} ({reason(error)}); earlier "
                "ones are kept. Free some space, and give the same command again"
            ) from error

    def restore(self, abstract_state: SavedState, data_fingerprint: str) -> SavedState | None:
        """The newest checkpoint that is not damaged, or None if there is no checkpoint.

        A damaged one is skipped and named in `fallbacks`; it is kept until the next save.

        Args:
          abstract_state: shapes, types and shardings of the state, as `jax.ShapeDtypeStruct`.
          data_fingerprint: fingerprint of the data that the run is resumed with.

        Raises:
          RunError: every checkpoint is damaged, the format of one is newer than this nfllm reads,
            or the data has changed.
        """
        found = peers.exchange("to look for checkpoints", self.steps())
        steps = sorted(set().union(*found))
        with open_reader(self._directory, ocp.StandardCheckpointHandler) as reader:
            for step in reversed(steps):
                state = self._read(reader, step, abstract_state, data_fingerprint)
                if state is not None:
                    return state
        if steps:
            raise RunError(
                f"no checkpoint in {self._directory} can be read: " + "; ".join(self.fallbacks)
            )
        return None

    def _read(
        self,
        reader: ocp.CheckpointManager,
        step: int,
        abstract_state: SavedState,
        data_fingerprint: str,
    ) -> SavedState | None:
        """The state of a checkpoint, or None if any process finds it damaged."""
        try:
            with _in_all_processes(step, "look at"):
                notes = read_notes(reader, step)
                check_format(self._directory, step, notes)
                _check_optimizer(self._directory, step, notes)
                _check_data(self._directory, step, notes, data_fingerprint)
                share, shares = jax.process_index(), jax.process_count()
                check_files(self._directory, step, share, shares)
            with _in_all_processes(step, "read"):
                arguments = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract_state)})
                state = reader.restore(step, args=arguments)[STATE]
            sums = named_checksums(state)  # a computation on the devices of all processes
            with _in_all_processes(step, "compare"):
                check_sums(sums, notes)
        except _DamagedError as error:
            self._broken.add(step)
            self.fallbacks.append(describe_damage(step, str(error)))
            return None
        return state


class _DamagedError(Exception):
    """A checkpoint that at least one process cannot read; the message says why."""


@contextlib.contextmanager
def _in_all_processes(step: int, doing: str) -> Iterator[None]:
    """Raises _DamagedError in every process if the block raises an error in any of them."""
    fault: str | None = None
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # for damaged files the libraries raise many types
        fault = reason(error)
    faults = peers.exchange(f"to {doing} the checkpoint of step {step}", fault)
    for process, other in enumerate(faults):
        if other is not None:
            where = f", in process {process}" if len(faults) > 1 else ""
            raise _DamagedError(other + where)


def restore_params(run: epath.PathLike, step: int | None = None) -> tuple[int, Params]:
    """Step and parameters of a checkpoint of a run, as NumPy arrays.

    It does not need the devices that trained the run.

    Args:
      run: the run directory.
      step: step of the checkpoint; by default the newest undamaged one, with a warning for each
        damaged one.

    Raises:
      RunError: the run has no such checkpoint, or none that can be read, or its format is newer
        than this nfllm reads.
      ValueError: `step` is not an integer.
    """
    step = None if step is None else as_integer("step", step)
    directory = run_directory(run) / CHECKPOINTS_DIR
    if not directory.exists():
        raise RunError(f"{directory} does not exist; train the run until its first checkpoint")
    faults: list[str] = []
    with open_reader(directory, ocp.PyTreeCheckpointHandler) as manager:
        kept = sorted(manager.all_steps())
        if not kept:
            raise RunError(f"{directory} holds none; train the run until its first checkpoint")
        listed = ", ".join(map(str, kept))
        if step is not None and step not in kept:
            raise RunError(
                f"{directory.parent} has no checkpoint of step {step}; it holds {listed} "
                "(checkpoint.every, keep and keep_every determine which are written and kept)"
            )
        for candidate in kept[::-1] if step is None else [step]:
            try:
                notes = read_notes(manager, candidate)
                check_format(directory, candidate, notes)
                check_files(directory, candidate)
                params = read_params(manager, candidate)
                check_sums(named_checksums(params, ".params"), notes)
                return candidate, params
            except RunError:
                raise
            except Exception as error:
                faults.append(describe_damage(candidate, reason(error)))
                logging.warning("%s: %s", directory, faults[-1])
    if step is not None:
        raise RunError(f"{directory}: {faults[0]}; load another of {listed}")
    raise RunError(f"{directory} has no checkpoint that can be read ({'; '.join(faults)})")


def _check_optimizer(directory: epath.Path, step: int, notes: Mapping[str, Any]) -> None:
    if not any(name.startswith(".opt_state") for name in notes["checksums"]):
        raise RunError(
            f"the checkpoint of step {step} in {directory} has no optimizer: it was imported, or "
            "derived from another run. To train from its weights, choose another --workdir and "
            f"--config.training.init_from={directory.parent}"
        )


def _check_data(
    directory: epath.Path, step: int, notes: Mapping[str, Any], data_fingerprint: str
) -> None:
    if notes["data_fingerprint"] != data_fingerprint:
        raise RunError(
            f"the checkpoint of step {step} in {directory} was trained on data with fingerprint "
            f"{notes['data_fingerprint'][:12]}, but the data now has {data_fingerprint[:12]}: the "
            "corpus or the tokenizer has changed; restore it, or start in another --workdir"
        )
