"""The training loop: calls the step, and all that measures time or writes files around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from signal import Signals
from typing import NamedTuple

import numpy as np
from etils import epath

from nfllm.config import Config
from nfllm.config.paths import user_path
from nfllm.data.batches import Batch, Prefetcher
from nfllm.trainer import hosts, interrupt, lock, peers, warm_start
from nfllm.trainer.between import BetweenSteps
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.clock import Clock
from nfllm.trainer.evaluation import Evaluation
from nfllm.trainer.input_watch import InputWatch
from nfllm.trainer.journal import Journal
from nfllm.trainer.loggers import Logger, check_loggers, open_loggers
from nfllm.trainer.non_finite import NonFiniteSteps
from nfllm.trainer.program import Program
from nfllm.trainer.record import check_resumable, check_writable, write_run
from nfllm.trainer.removals import Removals
from nfllm.trainer.start import find_start
from nfllm.trainer.step_lines import StepLines
from nfllm.training.state import TrainState
from nfllm.training.step import StepMetrics


class FitResult(NamedTuple):
    """How a run ended.

    `interrupted` is the signal that asked the run to end, if one did. If it stopped the training,
    `evaluation` and `entropy_LH` (nats) are None.
    """

    step: int
    evaluation: Evaluation | None
    entropy_LH: np.ndarray | None
    tokens_per_second: float
    interrupted: Signals | None


def fit(config: Config, workdir: epath.PathLike, *, loggers: Sequence[Logger] = ()) -> FitResult:
    """Trains `config` in the run directory `workdir`, or resumes from its newest checkpoint.

    A resumed run has the steps, order of data and losses of an uninterrupted one, bit for bit on a
    CPU. On SIGINT and SIGTERM it saves and returns.

    Args:
      config: the config to train.
      workdir: the run directory; created if it does not exist.
      loggers: further loggers that get each line of metrics.jsonl, beside `telemetry.loggers`.

    Raises:
      ConfigError: the config cannot be run on these devices or this data, or `workdir` cannot be
        written.
      RunError: `workdir` holds a run of another config or of other data.
      NonFiniteError: the loss or a gradient is not finite and `training.non_finite` is "stop".
    """
    run = user_path(workdir, "--workdir")
    check_writable(run)
    check_loggers(config, run)
    if (earlier := check_resumable(run, config)) is None:
        warm_start.check_source(config)
    # Making the devices also waits for all processes, but would not name a missing one.
    peers.exchange(f"to look at {run}", None)
    program = Program(config)
    fingerprint = program.dataset.fingerprint
    hosts.check_agreement(config, fingerprint)
    with (
        lock.hold(run) if hosts.is_first() else contextlib.nullcontext(),
        interrupt.watch() as signals,
        Checkpoints(run, config.checkpoint, earlier) as checkpoints,
    ):
        # The configs are compared again: while the data was prepared, another run may have begun.
        start = find_start(run, program, checkpoints)
        step = int(start.state.step)
        others = [*open_loggers(config, run, step), *loggers]
        with Journal(run, config.training.steps, step, others) as journal:
            for line in checkpoints.fallbacks:
                journal.event("fell_back", step, f"{line}; continuing from step {step}")
            journal.event(start.event, step, start.message)
            # After the event: until then the next start can still tell what was changed.
            if hosts.is_first():
                write_run(run, program, start.state.params, start.origin)
            return _Loop(program, checkpoints, journal, signals, step).run(start.state)


class _Loop:
    """The loop, with everything that it keeps beside the training state."""

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        journal: Journal,
        signals: interrupt.Interrupt,
        step: int,
    ) -> None:
        config = program.config
        self.program = program
        self.checkpoints = checkpoints
        self.journal = journal
        self.signals = signals
        self.faults = NonFiniteSteps(program, checkpoints, journal)
        clock = Clock(config.training.batch_size * config.model.context_length)
        watch = InputWatch(journal, step)
        self.lines = StepLines(config.training, journal, clock, watch, self.faults)
        removals = Removals(program, journal)
        self.between = BetweenSteps(program, checkpoints, journal, signals, removals)
        self.waited_seconds = 0.0

    def run(self, state: TrainState) -> FitResult:
        """Trains to the last step, or until a signal."""
        total = self.program.config.training.steps
        if int(state.step) == 0:
            self.between.probe(state, 0)
        while (step := int(state.step)) < total:
            # Called again after a step that tripped the guard: batches depend only on the step.
            state, signal = self._train(state, step)
            if signal is not None:
                return self._interrupted(signal, state)
        self.between.save(state)
        entropy_LH = self.between.probe(state, total)
        evaluation = self.between.evaluate(state, total)
        self.checkpoints.wait()
        self.journal.event("finished", total, f"finished {total} steps")
        speed = self.lines.clock.tokens_per_second
        return FitResult(total, evaluation, entropy_LH, speed, self.signals.signal)

    def _train(self, state: TrainState, step: int) -> tuple[TrainState, Signals | None]:
        """Trains from `step` on: to the end, to a signal, or to a step that tripped the guard."""
        unread: StepMetrics | None = None
        with self.program.train_batches(step) as batches, self._waiting(batches):
            batches.on_stall = self.lines.input.stalled

            def read(metrics: StepMetrics | None, step: int) -> StepMetrics | None:
                """Writes the line of a step, if there was one; its metrics if it tripped."""
                if metrics is None:
                    return None
                waited = self.waited_seconds + batches.waited_seconds
                return self.lines.read(metrics, step, waited)

            for batch in batches:
                state, metrics = self.program.train_step(state, batch)
                # Metrics are read one step late, so that the device never waits for the host.
                if (bad := read(unread, step)) is not None:
                    return self._resolve(state, bad, step), None
                step, unread = step + 1, metrics
                due, signal = self.between.due(step), self._signal(step)
                # What is due after the last step is done by `run`.
                if not (due or signal) or step == self.program.config.training.steps:
                    continue
                if (bad := read(unread, step)) is not None:
                    state = self._resolve(state, bad, step)
                    if int(state.step) != step:  # the step is repeated
                        return state, None
                unread = None
                with self.lines.clock.paused():
                    signal = self.between.do(state, step, due, signal)
                if signal is not None:
                    return state, signal
            if (bad := read(unread, step)) is not None:
                state = self._resolve(state, bad, step)
        return state, None

    def _signal(self, step: int) -> Signals | None:
        """The signal that ends the run after `step`: of this process, or SIGTERM for another's."""
        # Every process must ask after every step.
        return Signals.SIGTERM if hosts.stop_agreed(step) else self.signals.signal

    def _resolve(self, state: TrainState, bad: StepMetrics, step: int) -> TrainState:
        with self.lines.clock.paused():
            return self.faults.resolve(state, bad, step)

    @contextlib.contextmanager
    def _waiting(self, batches: Prefetcher[Batch]) -> Iterator[None]:
        """Adds the time that was waited for batches, however the block ends."""
        try:
            yield
        finally:
            self.waited_seconds += batches.waited_seconds

    def _interrupted(self, signal: Signals, state: TrainState) -> FitResult:
        step = int(state.step)
        self.between.save(state)
        self.checkpoints.wait()
        self.journal.event("interrupted", step, f"{signal.name}: saved at step {step}")
        return FitResult(step, None, None, self.lines.clock.tokens_per_second, signal)
