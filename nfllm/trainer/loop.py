"""The training loop: all that measures time or writes files around a step is called from here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from signal import Signals
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from nfllm.config import Config
from nfllm.config.paths import user_path
from nfllm.config.recipes import recipe_note
from nfllm.data.batches import Batch, Prefetcher
from nfllm.model.attention_implementation import implementation_of_step
from nfllm.rundir import Origin, read_record
from nfllm.trainer import hosts, interrupt, lock, peers, warm_start
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.clock import Clock
from nfllm.trainer.evaluation import Evaluation
from nfllm.trainer.input_watch import InputWatch
from nfllm.trainer.journal import Journal
from nfllm.trainer.loggers import Logger, check_loggers, open_loggers
from nfllm.trainer.non_finite import NonFiniteSteps
from nfllm.trainer.program import Program
from nfllm.trainer.record import check_resumable, check_writable, describe_changes, write_run
from nfllm.trainer.removals import Removals
from nfllm.training.state import TrainState
from nfllm.training.step import StepMetrics


class FitResult(NamedTuple):
    """How a run ended.

    `evaluation` and `entropy_LH` (nats) are None where the run was interrupted by `interrupted`.
    """

    step: int
    evaluation: Evaluation | None
    entropy_LH: np.ndarray | None
    tokens_per_second: float
    interrupted: Signals | None


def fit(config: Config, workdir: epath.PathLike, *, loggers: Sequence[Logger] = ()) -> FitResult:
    """Trains `config` in the run directory `workdir`, or resumes from its newest checkpoint.

    Steps, order of data and losses are those of a run that was never interrupted, bit for bit on a
    CPU. On SIGINT and SIGTERM it saves and returns.

    Args:
      config: what to run.
      workdir: the run directory; created where it does not exist.
      loggers: what gets each line of metrics.jsonl, beside those of `telemetry.loggers`.

    Raises:
      ConfigError: the config cannot be run on these devices or this data.
      RunError: `workdir` cannot be written, or holds a run of another config or of other data.
      NonFiniteError: the loss or a gradient is not finite and `training.non_finite` says to stop.
    """
    run = user_path(workdir, "--workdir")
    check_writable(run)
    check_loggers(config, run)
    earlier = check_resumable(run, config)
    # Making the devices waits for all processes, and would name none of them.
    peers.exchange(f"to look at {run}", None)
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
        if state is None:
            state, origin = warm_start.first_state(program)
        else:
            state, origin = program.placement.from_checkpoint(state), read_record(run).origin
        if hosts.is_first():
            write_run(run, program, state.params, origin)
        step = int(state.step)
        others = [*open_loggers(config, run, step), *loggers]
        with Journal(run, config.training.steps, step, others) as journal:
            clock = Clock(config.training.batch_size * config.model.context_length)
            watch = InputWatch(journal, step)
            faults = NonFiniteSteps(program, checkpoints, journal)
            removed = Removals(program, journal)
            loop = _Loop(program, checkpoints, journal, signals, watch, clock, faults, removed)
            loop.announce(resumed, step, earlier, origin)
            return loop.run(state)


@dataclasses.dataclass
class _Loop:
    """What the loop keeps beside the training state."""

    program: Program
    checkpoints: Checkpoints
    journal: Journal
    signals: interrupt.Interrupt
    input: InputWatch
    clock: Clock
    faults: NonFiniteSteps
    removals: Removals
    waited_seconds: float = 0.0

    def announce(
        self, resumed: bool, step: int, earlier: Config | None, origin: Origin | None
    ) -> None:
        for line in self.checkpoints.fallbacks:
            self.journal.event("fell_back", step, f"{line}; going on from step {step}")
        if resumed:
            note = describe_changes(earlier, self.program.config, step) if earlier else ""
            self.journal.event("resumed", step, f"resumed at step {step}{note}")
        else:
            model = self.program.model
            attention: str = model.config.mixer
            if model.config.has_attention_maps:
                attention = implementation_of_step(
                    model.config,
                    model.dtype,
                    with_entropy=self.program.config.telemetry.entropy_every_step,
                )
            self.journal.event(
                "started",
                step,
                f"started: {model.config.architecture}, {jax.device_count()} "
                f"{jax.default_backend()} device(s), {model.dtype} products, {attention} attention"
                + "".join(
                    f"; {note}" for note in (origin, recipe_note(self.program.config)) if note
                ),
            )

    def run(self, state: TrainState) -> FitResult:
        """Trains to the last step, or until a signal."""
        total = self.program.config.training.steps
        if int(state.step) == 0:
            self._probe(state, 0)
        while (step := int(state.step)) < total:
            # Again after a step that tripped the guard: batches are a function of the step.
            state, signal = self._train(state, step)
            if signal is not None:
                return self._interrupted(signal, state)
        self._save(state)
        entropy_LH = self._probe(state, total)
        evaluation = self._evaluate(state, total)
        self.checkpoints.wait()
        self.journal.event("finished", total, f"finished {total} steps")
        return FitResult(total, evaluation, entropy_LH, self.clock.tokens_per_second, None)

    def _train(self, state: TrainState, step: int) -> tuple[TrainState, Signals | None]:
        """Trains from `step` on: to the end, to a signal, or to a step that tripped the guard."""
        config = self.program.config
        unread: StepMetrics | None = None
        with self.program.train_batches(step) as batches:
            batches.on_stall = self.input.stalled
            for batch in batches:
                state, metrics = self.program.train_step(state, batch)
                # Metrics are read one step late, so that the device never waits for the host.
                if unread is not None and (bad := self._read(unread, step, batches)) is not None:
                    return self.faults.resolve(state, bad, step), None
                step, unread = step + 1, metrics
                due = _due(config, step, self.removals.steps)
                signal = self.signals.signal
                if hosts.stop_agreed(step):
                    signal = Signals.SIGTERM
                if not (due or signal) or step == config.training.steps:
                    continue
                if (bad := self._read(unread, step, batches)) is not None:
                    state = self.faults.resolve(state, bad, step)
                    if int(state.step) != step:  # the step is repeated
                        return state, None
                unread = None
                signal = self._pause(state, step, due, signal)
                if signal is not None:
                    return state, signal
            self.waited_seconds += batches.waited_seconds
            if unread is not None and (bad := self._read(unread, step, batches)) is not None:
                state = self.faults.resolve(state, bad, step)
        return state, None

    def _pause(
        self, state: TrainState, step: int, due: set[str], signal: Signals | None
    ) -> Signals | None:
        """Does what is due after `step`; returns the signal that ends the run, if there is one."""
        with self.clock.paused():
            if signal is not None:  # the sender of the signal may not wait for an evaluation
                self._save(state)
                self.checkpoints.wait()
            if "removal" in due:
                self.removals.tell(state, step)
            if "telemetry" in due:
                self._probe(state, step)
            if "evaluation" in due:
                self._evaluate(state, step)
            signal = signal or self.signals.signal
            if signal is None and "checkpoint" in due:
                self._save(state)
        return signal

    def _read(
        self, metrics: StepMetrics, step: int, batches: Prefetcher[Batch]
    ) -> StepMetrics | None:
        """Waits for the metrics of step number `step`; returns them where it tripped the guard."""
        values = jax.device_get(metrics)
        self.clock.tick()
        self.faults.count(values, step)
        again = values.tripped and self.program.config.training.non_finite != "skip"
        if not again:
            self._write(values, step, self.waited_seconds + batches.waited_seconds)
        return values if values.tripped else None

    def _write(self, values: StepMetrics, step: int, waited: float) -> None:
        """Writes a line of metrics, where one is due."""
        config = self.program.config.training
        if step % config.log_every and step != config.steps:
            return
        speed = self.clock.lap()
        on_request = {
            "entropy_nats": values.entropy_LH,
            "logit_max": values.logit_max_LH,
            "grad_norm_by_layer": values.grad_norm_L,
        }
        self.journal.write(
            "train",
            step,
            **{name: value for name, value in on_request.items() if value is not None},
            **{name: float(value) for name, value in values.auxiliary.items()},
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

    def _probe(self, state: TrainState, step: int) -> np.ndarray | None:
        if not self.program.config.telemetry.every:
            return None
        fields = self.program.probe(state)
        self.journal.write("telemetry", step, **fields)
        return fields.get("entropy_nats")

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
        self.journal.flush()  # so that a step with a checkpoint has its metrics
        whole = self.program.placement.to_checkpoint(state)
        self.checkpoints.save(whole, self.program.dataset.fingerprint)

    def _interrupted(self, signal: Signals, state: TrainState) -> FitResult:
        step = int(state.step)
        self._save(state)
        self.checkpoints.wait()
        self.journal.event("interrupted", step, f"{signal.name}: saved at step {step}")
        return FitResult(step, None, None, self.clock.tokens_per_second, signal)


def _due(config: Config, step: int, removal_steps: Collection[int]) -> set[str]:
    """What is to be done after `step` steps, besides training."""
    intervals: dict[str, Any] = {
        "telemetry": config.telemetry.every,
        "evaluation": config.evaluation.every,
        "checkpoint": config.checkpoint.every,
    }
    due = {what for what, every in intervals.items() if every and step % every == 0}
    return due | ({"removal"} if step in removal_steps else set())
