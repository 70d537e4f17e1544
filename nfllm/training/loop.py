"""The one training loop: everything with a clock or a file in it is called from here."""

from __future__ import annotations

import contextlib
import dataclasses
from signal import Signals
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from nfllm import analysis
from nfllm.analysis import Ledger
from nfllm.config import Config
from nfllm.config.paths import user_path
from nfllm.data.batches import Batch
from nfllm.model.attention_implementation import implementation_of_step
from nfllm.training import hosts, interrupt, lock, peers
from nfllm.training.checkpoint import Checkpoints
from nfllm.training.clock import Clock
from nfllm.training.diagnosis import describe
from nfllm.training.evaluation import Evaluation
from nfllm.training.input_watch import InputWatch
from nfllm.training.journal import Journal
from nfllm.training.program import Program
from nfllm.training.record import check_resumable, check_writable, write_run
from nfllm.training.state import TrainState
from nfllm.training.step import StepMetrics


class NonFiniteError(RuntimeError):
    """The loss or a gradient became NaN or infinite, and the policy says to stop."""


class FitResult(NamedTuple):
    """How a run ended.

    `evaluation` and `entropy_LH` (nats) are None where the run was interrupted by `interrupted`.
    """

    step: int
    evaluation: Evaluation | None
    entropy_LH: np.ndarray | None
    tokens_per_second: float
    interrupted: Signals | None


def fit(config: Config, workdir: epath.PathLike) -> FitResult:
    """Trains `config` in the run directory `workdir`, or goes on from its newest checkpoint.

    Steps, order of data and losses are those of a run that was never interrupted, bit for bit on a
    CPU. SIGINT and SIGTERM save before they end it.

    Args:
      config: what to run.
      workdir: the run directory; made where it does not exist.

    Raises:
      ConfigError: the config cannot be run on these devices or this data.
      RunError: `workdir` cannot be written, or holds a run of another config or of other data.
      NonFiniteError: the loss or a gradient is not finite and `training.non_finite` says to stop.
    """
    run = user_path(workdir, "--workdir")
    check_writable(run)
    changes = check_resumable(run, config)
    peers.exchange(f"to look at {run}", None)  # making the devices waits for all, and names none
    program = Program(config)
    fingerprint = program.dataset.fingerprint
    hosts.check_agreement(config, fingerprint)
    with (
        lock.hold(run) if hosts.is_first() else contextlib.nullcontext(),
        interrupt.watch() as signals,
        Checkpoints(run, config.checkpoint) as checkpoints,
    ):
        state = checkpoints.restore(program.abstract_state(), fingerprint)
        resumed = state is not None
        state = program.init_state() if state is None else program.parallel.from_checkpoint(state)
        if hosts.is_first():
            write_run(run, program, state.params)
        with Journal(run, config.training.steps, int(state.step)) as journal:
            step = int(state.step)
            clock = Clock(config.training.batch_size * config.model.context_length)
            watch = InputWatch(journal, step)
            loop = _Loop(program, checkpoints, journal, signals, watch, clock)
            loop.announce(resumed, step, changes)
            return loop.run(state)


class _Taken(NamedTuple):
    """A step that was dispatched: its batch, and whether its update is applied come what may."""

    batch: Batch
    metrics: StepMetrics
    forced: bool


@dataclasses.dataclass
class _Loop:
    """The state of the loop that is not the training state."""

    program: Program
    checkpoints: Checkpoints
    journal: Journal
    signals: interrupt.Interrupt
    input: InputWatch
    clock: Clock
    non_finite_in_a_row: int = 0

    def announce(self, resumed: bool, step: int, changes: list[str]) -> None:
        for line in self.checkpoints.fallbacks:
            self.journal.event("fell_back", step, f"{line}; going on from step {step}")
        if resumed:
            note = f" with {', '.join(changes)}" if changes else ""
            self.journal.event("resumed", step, f"resumed at step {step}{note}")
        else:
            model = self.program.model
            attention = implementation_of_step(
                model.config,
                model.dtype,
                with_entropy=self.program.config.telemetry.entropy_every_step,
            )
            self.journal.event(
                "started",
                step,
                f"started: {model.config.architecture}, {jax.device_count()} "
                f"{jax.default_backend()} device(s), {model.dtype} products, {attention} attention",
            )

    def run(self, state: TrainState) -> FitResult:
        config, program = self.program.config, self.program
        start, total = int(state.step), config.training.steps
        unread: _Taken | None = None
        step = start
        if start == 0:
            self._probe(state, 0)
        with program.train_batches(start) as batches:
            batches.on_stall = self.input.stalled
            for batch in batches:
                state, new = self._take(state, batch, unread)
                # The metrics of the step before: the device is never kept waiting for the host.
                if unread is not None:
                    state, again = self._read(state, unread, new, step, batches.waited_seconds)
                    new = again or new
                step, unread = step + 1, new
                due = _due(config, step)
                stop = self.signals.signal
                if hosts.stop_agreed(step):
                    stop = Signals.SIGTERM
                if not (due or stop) or step == total:
                    continue
                state, _ = self._read(state, new, None, step, batches.waited_seconds)
                unread = None
                with self.clock.paused():
                    if stop:  # whoever asked for it may not wait for an evaluation
                        self._save(state)
                        self.checkpoints.wait()
                    if "telemetry" in due:
                        self._probe(state, step)
                    if "evaluation" in due:
                        self._evaluate(state, step)
                    stop = stop or self.signals.signal
                    if stop:
                        return self._interrupted(stop, state, step)
                    if "checkpoint" in due:
                        self._save(state)
            if unread is not None:
                state, _ = self._read(state, unread, None, step, batches.waited_seconds)
        self._save(state)
        entropy_LH = self._probe(state, step)
        evaluation = self._evaluate(state, step)
        self.checkpoints.wait()
        self.journal.event("finished", step, f"finished {step} steps")
        return FitResult(step, evaluation, entropy_LH, self.clock.tokens_per_second, None)

    def _take(
        self, state: TrainState, batch: Batch, after: _Taken | None = None
    ) -> tuple[TrainState, _Taken]:
        """Dispatches a step, which does nothing where `after`, still unread, was not finite."""
        put_flag = self.program.parallel.put_flag
        go = put_flag(True) if after is None or after.forced else after.metrics.finite
        forced = self._goes_on and self.non_finite_in_a_row > 0
        state, metrics = self.program.train_step(state, batch, go, put_flag(forced))
        return state, _Taken(batch, metrics, forced)

    def _read(
        self, state: TrainState, taken: _Taken, later: _Taken | None, step: int, waited: float
    ) -> tuple[TrainState, _Taken | None]:
        """Waits for the metrics of step number `step` and acts on them.

        Takes again what a step that is not finite held back: `later`, the step dispatched since,
        and the step itself where its update is to be applied. Returns the state, and `later` where
        it was taken again.
        """
        values = jax.device_get(taken.metrics)
        self.clock.tick()
        finite = bool(values.finite)
        self.non_finite_in_a_row = 0 if finite else self.non_finite_in_a_row + 1
        held_back = not finite and not taken.forced
        if held_back or self.non_finite_in_a_row == 1:
            # The update of a forced step was applied: what it started from is gone.
            diagnose, scale = self.program.diagnose, float(values.loss_scale)
            record = diagnose(state, step - 1, scale) if held_back else None
            self._tell_non_finite(record, values, step)
        self._tell(values, step, waited)
        if not held_back:
            return state, None
        if self._goes_on:
            state, _ = self._take(state, taken.batch)
        return (state, None) if later is None else self._take(state, later.batch)

    @property
    def _goes_on(self) -> bool:
        """Whether updates that are not finite are applied."""
        return self.program.config.training.non_finite == "continue"

    def _tell(self, values: StepMetrics, step: int, waited: float) -> None:
        config = self.program.config.training
        if step % config.log_every == 0 or step == config.steps:
            speed = self.clock.lap()
            entropy_LH = values.entropy_LH
            told = {} if entropy_LH is None else {"entropy_nats": entropy_LH}
            self.journal.write(
                "train",
                step,
                **told,
                loss_nats=float(values.loss_nats),
                grad_norm=float(values.grad_norm),
                learning_rate=float(values.learning_rate),
                tokens=step * self.clock.tokens_per_step,
                tokens_per_second=round(speed, 1),
                input_wait_seconds=round(waited, 4),
                elapsed_seconds=round(self.clock.elapsed, 3),
            )
            self.input.lap(step, waited, self.clock.trained_seconds)
            self.journal.update(step, float(values.loss_nats), speed)

    def _tell_non_finite(self, record: Ledger | None, values: StepMetrics, step: int) -> None:
        """Journals a step that was not finite, and where its `record` says it began."""
        config = self.program.config.training
        site = None if record is None else analysis.first_bad_site(record)
        where = "after updates that were not finite" if record is None else describe(record)
        message = (
            f"loss {float(values.loss_nats)} and gradient norm {float(values.grad_norm)} at step "
            f"{step}: {where}"
        )
        self.journal.event("non_finite", step, message, **(site._asdict() if site else {}))
        limit = config.max_skipped_steps
        if config.non_finite == "skip" and self.non_finite_in_a_row > limit:
            message += (
                f"; {self.non_finite_in_a_row} steps in a row, training.max_skipped_steps={limit}"
            )
        elif config.non_finite != "stop":
            return
        saved = self.checkpoints.steps()
        kept = f"the checkpoint of step {saved[-1]} is kept" if saved else "none was saved before"
        self.journal.event("stopped", step, f"stopped: {kept}")
        raise NonFiniteError(
            f"{message}; {kept}. Lower optimizer.learning_rate, or set training.non_finite to skip "
            "or continue"
        )

    def _probe(self, state: TrainState, step: int) -> np.ndarray | None:
        if not self.program.config.telemetry.every:
            return None
        fields = self.program.probe(state)
        self.journal.write("telemetry", step, **fields)
        return fields["entropy_nats"]

    def _evaluate(self, state: TrainState, step: int) -> Evaluation:
        found = self.program.evaluate(state)
        self.journal.write(
            "eval",
            step,
            eval_loss_nats=found.loss_nats,
            eval_perplexity=found.perplexity,
            eval_tokens=found.num_targets,
            eval_seconds=round(found.seconds, 3),
        )
        self.journal.say(
            f"step {step}  evaluation loss {found.loss_nats:.4f} nats, perplexity "
            f"{found.perplexity:.2f}"
        )
        return found

    def _save(self, state: TrainState) -> None:
        self.journal.flush()  # the metrics of a saved step are never lost
        whole = self.program.parallel.to_checkpoint(state)
        self.checkpoints.save(whole, self.program.dataset.fingerprint)

    def _interrupted(self, signal: Signals, state: TrainState, step: int) -> FitResult:
        self._save(state)
        self.checkpoints.wait()
        self.journal.event("interrupted", step, f"{signal.name}: saved at step {step}")
        return FitResult(step, None, None, self.clock.tokens_per_second, signal)


def _due(config: Config, step: int) -> set[str]:
    """What is to be done after `step` steps, besides training."""
    intervals: dict[str, Any] = {
        "telemetry": config.telemetry.every,
        "evaluation": config.evaluation.every,
        "checkpoint": config.checkpoint.every,
    }
    return {what for what, every in intervals.items() if every and step % every == 0}
