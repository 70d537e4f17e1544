"""Who is told of a run's metrics beside `metrics.jsonl`, while it trains."""

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
    """What is told of each line of `metrics.jsonl` as it is written; its writer is the first.

    Give others of your own to `fit(config, workdir, loggers=[...])`; what they raise ends the run.
    """

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Takes the fields of a line of `kind` ("train", "eval", "telemetry", "event").

        Args:
          step: optimizer steps completed.
          kind: of the line.
          values: numbers, strings, arrays such as `entropy_nats` [L, H], and dicts of them.
        """

    def flush(self) -> None:
        """Returns when all that was given is on storage."""

    def close(self) -> None:
        """Flushes, and takes no more."""


def scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name: `kind/field`, and of an array one for each layer.

    `[L]` becomes `kind/field/layer_00`; of `[L, H]` the mean over heads is taken, and the name says
    so: `kind/field/layer_00_mean`. Text is left out.
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
    """A logger of numbers, each line once; one that fails is left behind, and the run goes on."""

    name: str

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()
        self._failed = False

    def on_metrics(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Hands the numbers of a line on; a line of one kind and step a second time is dropped."""
        numbers = scalars(kind, values) if kind != "event" else {}
        if numbers and (kind, step) not in self._seen:
            self._seen.add((kind, step))
            self._guarded(lambda: self._log(step, numbers))

    def flush(self) -> None:
        """Returns when what was given is on storage, or with a logger that keeps its own time."""
        self._guarded(self._flush)

    def close(self) -> None:
        """Flushes and ends."""
        self._guarded(self._close)

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # of whatever kind a disk or a network makes the package raise
            self._failed = True
            logging.warning(
                "telemetry.loggers=%s failed (%s); it gets no more, and the run goes on with "
                "metrics.jsonl, from which the same command fills it up when it resumes",
                self.name,
                error,
            )

    @abc.abstractmethod
    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hands the numbers of a step to the package."""

    def _flush(self) -> None:  # noqa: B027 (most need none)
        """Most write by themselves."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Ends what the package has open."""


class TensorBoard(_Scalars):
    """Event files in `tensorboard/` of the run directory: `tensorboard --logdir RUN`.

    They are written anew when a run resumes, from what `metrics.jsonl` holds, so that nothing is in
    them twice, nor what was measured after the checkpoint that it goes on from.
    """

    name = "tensorboard"

    def __init__(self, run: epath.Path, config: Config, lines: Iterable[Mapping[str, Any]]) -> None:
        from tensorboardX import SummaryWriter

        super().__init__()
        directory = run / "tensorboard"
        for old in directory.glob("events.out.tfevents.*") if directory.exists() else ():
            old.unlink()
        # purge_step: a TensorBoard that is looking forgets what it has read of the old files.
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

    Where to and as whom, the variables of the package say: WANDB_MODE=offline, WANDB_PROJECT,
    WANDB_ENTITY. A run that resumes goes on under the same id, and gives nothing again that it
    measured before its checkpoint; steps between that and a kill it gives again, as it takes them
    again.
    """

    name = "wandb"

    def __init__(self, run: epath.Path, config: Config, lines: Iterable[Mapping[str, Any]]) -> None:
        import wandb

        super().__init__()
        lines = list(lines)
        note = run / "wandb_id.txt"
        goes_on = bool(lines) and note.exists()
        if not goes_on:
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
        if goes_on:
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
    """Raises ConfigError where a logger of `telemetry.loggers` could not write beside `run`."""
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
    """The loggers of `telemetry.loggers`, told of all that a run that goes on has measured.

    Only the first process has any.

    Args:
      config: of the run.
      run: its directory.
      done: steps of the checkpoint that it goes on from; 0 for one that starts.

    Raises:
      ConfigError: one cannot start, as Weights & Biases where nobody has logged in.
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
