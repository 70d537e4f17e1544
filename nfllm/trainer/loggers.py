"""Loggers of a run's metrics beside `metrics.jsonl`: TensorBoard, Weights & Biases, your own."""

from __future__ import annotations

import abc
import importlib.util
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from nfllm.config import Config, ConfigError
from nfllm.config.limits import logger_names
from nfllm.config.paths import is_local
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.hosts import is_first


class Logger(Protocol):
    """Receives each line of `metrics.jsonl` as it is written; the file's writer is one itself.

    Pass your own to `fit(config, workdir, loggers=[...])`; an error that they raise ends the run.
    """

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Receives the fields of a line.

        Args:
          step: number of optimizer steps completed.
          kind: kind of the line: "train", "eval", "telemetry" or "event".
          values: numbers, strings, arrays such as `entropy_nats` [L, H], and dicts of them.
        """

    def flush(self) -> None:
        """Waits until all lines received so far are on storage."""

    def close(self) -> None:
        """Flushes; no lines follow."""


def scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name: `kind/field`, and for arrays one for each layer.

    `[L]` becomes `kind/field/layer_00` and so on; `[L, H]` is averaged over heads, as the name
    says: `kind/field/layer_00_mean`. Text is left out.

    Example:
      >>> scalars("telemetry", {"entropy_nats": [[1.0, 2.0]]})
      {'telemetry/entropy_nats/layer_00_mean': 1.5}
    """
    found: dict[str, float] = {}
    for field, value in values.items():
        name = f"{kind}/{field}"
        if isinstance(value, Mapping):
            found |= scalars(name, value)
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            continue
        if array.ndim == 0:
            found[name] = float(array)
            continue
        end = "_mean" if array.ndim > 1 else ""
        for layer, of_layer in enumerate(array):
            found[f"{name}/layer_{layer:02}{end}"] = float(np.mean(of_layer))
    return found


class _Scalars(abc.ABC):
    """A logger of numbers, each line once; if it fails, the run continues without it."""

    name: str

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()
        self._failed = False

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Logs the numbers of a line; a second line of the same kind and step is dropped."""
        numbers = scalars(kind, values) if kind != "event" else {}
        if numbers and (kind, step) not in self._seen:
            self._seen.add((kind, step))
            self._guarded(lambda: self._log(step, numbers))

    def flush(self) -> None:
        """Writes pending lines, if the package lets us."""
        self._guarded(self._flush)

    def close(self) -> None:
        """Flushes and closes."""
        self._guarded(self._close)

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # packages raise many types about disks and networks
            self._failed = True
            logging.warning(
                "telemetry.loggers=%s failed (%s); the run continues without it. Its lines are in "
                "metrics.jsonl, and are logged when the same command resumes the run",
                self.name,
                error,
            )

    @abc.abstractmethod
    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Passes the numbers of a step to the package."""

    def _flush(self) -> None:  # noqa: B027 (optional)
        """Makes the package write pending numbers; by default it does so by itself."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Closes what the package has open."""


class TensorBoard(_Scalars):
    """Event files in `tensorboard/` of the run directory: `tensorboard --logdir RUN`.

    When a run resumes, they are written again from `metrics.jsonl`, so that they have neither
    duplicates nor lines from after the checkpoint that the run resumes from.
    """

    name = "tensorboard"

    def __init__(self, run: epath.Path, config: Config, lines: Iterable[Mapping[str, Any]]) -> None:
        from tensorboardX import SummaryWriter

        super().__init__()
        directory = run / "tensorboard"
        for old in directory.glob("events.out.tfevents.*") if directory.exists() else ():
            old.unlink()
        # purge_step makes a running TensorBoard discard what it has read from the old files.
        self._writer = SummaryWriter(os.fspath(directory), purge_step=0)
        _replay(self, lines)

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        for tag, number in numbers.items():
            self._writer.add_scalar(tag, number, step)

    def _flush(self) -> None:
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


class WeightsAndBiases(_Scalars):
    """A run of Weights & Biases, whose files are in `wandb/` of the run directory.

    The package's environment variables choose project and account: WANDB_MODE=offline,
    WANDB_PROJECT, WANDB_ENTITY. A resumed run continues under the same id. Lines from before its
    checkpoint are not logged again; steps after it, which are trained again, are.
    """

    name = "wandb"

    def __init__(self, run: epath.Path, config: Config, lines: Iterable[Mapping[str, Any]]) -> None:
        import wandb

        super().__init__()
        lines = list(lines)
        note = run / "wandb_id.txt"
        is_resumed = bool(lines) and note.exists()
        if not is_resumed:
            note.write_text(uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "nfllm"),
                name=run.name,
                id=note.read_text(),
                resume="allow",
                dir=os.fspath(run),
                config=config.to_dict(),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"telemetry.loggers=wandb: {error}; `wandb login`, or set WANDB_MODE=offline"
            ) from error
        if is_resumed:
            self._seen = {(line["kind"], line["step"]) for line in lines}
        else:
            _replay(self, lines)

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def _close(self) -> None:
        self._run.finish()


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_LOGGERS: dict[str, Callable[..., Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_loggers(config: Config, run: epath.Path) -> None:
    """Raises ConfigError if a logger of `telemetry.loggers` cannot be used for `run`."""
    for name in logger_names(config.telemetry.loggers):
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"telemetry.loggers={name} needs the package {_PACKAGES[name]}: "
                f"pip install 'nfllm[{name}]'"
            )
        if not is_local(run):
            raise ConfigError(
                f"telemetry.loggers={name} writes local files, but --workdir is {run}; leave the "
                "key empty, or train in a local directory"
            )


def open_loggers(config: Config, run: epath.Path, done: int) -> list[Logger]:
    """The loggers of `telemetry.loggers`, with the lines that a resumed run wrote earlier.

    Only the first process has loggers.

    Args:
      config: the config of the run.
      run: its directory.
      done: the step of the checkpoint that it resumes from; 0 for a new run.

    Raises:
      ConfigError: a logger cannot start, such as Weights & Biases without a login.
    """
    names = logger_names(config.telemetry.loggers)
    if not names or not is_first():
        return []
    rows = read_metrics(run).rows if done else {}
    lines = [line for kind in rows for line in rows[kind] if line["step"] <= done]
    lines.sort(key=lambda line: line["step"])
    return [_LOGGERS[name](run, config, lines) for name in names]


def _replay(logger: Logger, lines: Iterable[Mapping[str, Any]]) -> None:
    for line in lines:
        values = {field: x for field, x in line.items() if field not in ("step", "kind")}
        logger.on_metrics(line["step"], line["kind"], values)
