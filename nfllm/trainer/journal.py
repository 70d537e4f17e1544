"""The reporting of a run: metrics to its file and other loggers, and messages to the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from nfllm.rundir.metrics import MetricsWriter
from nfllm.trainer.hosts import is_first
from nfllm.trainer.loggers import Logger
from nfllm.trainer.progress import Progress


class Journal:
    """Metrics and progress of the first process; the others write and print nothing.

    Args:
      run: the run directory.
      total_steps: number of steps of the run.
      done: number of steps before this start, 0 for a new run.
      loggers: loggers beside the writer of `metrics.jsonl`; the journal closes them.

    Example:
      >>> with Journal(epath.Path("runs/relu"), total_steps=1000, done=0) as journal:
      ...     journal.write("eval", step=250, eval_loss_nats=4.0)
      ...     journal.event("checkpoint", 250, "saved at step 250")
      saved at step 250
    """

    def __init__(
        self,
        run: epath.Path,
        total_steps: int,
        done: int,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._loggers: list[Logger] = []
        self._progress: Progress | None = None
        if is_first():
            self._loggers.append(self._stack.enter_context(MetricsWriter(run)))
            for logger in loggers:
                self._loggers.append(logger)
                self._stack.callback(logger.close)
            self._progress = self._stack.enter_context(Progress(total_steps, done))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """Adds a line to metrics.jsonl, and passes it to the other loggers."""
        for logger in self._loggers:
            logger.on_metrics(step, kind, fields)

    def event(self, event: str, step: int, message: str, **fields: object) -> None:
        """Adds an event to metrics.jsonl, and prints its message."""
        self.write("event", step, event=event, message=message, **fields)
        self.say(message)

    def say(self, line: str) -> None:
        """Prints a line."""
        if self._progress is not None:
            self._progress.say(line)

    def flush(self) -> None:
        """Waits until every line is on storage."""
        for logger in self._loggers:
            logger.flush()

    def update(
        self, step: int, loss_nats: float, tokens_per_second: float, seconds_left: float
    ) -> None:
        """Moves the progress bar to `step`."""
        if self._progress is not None:
            self._progress.update(step, loss_nats, tokens_per_second, seconds_left)
