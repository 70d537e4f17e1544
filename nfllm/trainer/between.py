"""The work of a run between steps: probes, evaluations and checkpoints, each when it is due."""

from __future__ import annotations

import dataclasses
from signal import Signals

import numpy as np

from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.evaluation import Evaluation
from nfllm.trainer.interrupt import Interrupt
from nfllm.trainer.journal import Journal
from nfllm.trainer.program import Program
from nfllm.trainer.removals import Removals
from nfllm.training.state import TrainState


@dataclasses.dataclass
class BetweenSteps:
    """Probes, evaluates and saves a state, and writes the results."""

    program: Program
    checkpoints: Checkpoints
    journal: Journal
    signals: Interrupt
    removals: Removals

    def due(self, step: int) -> set[str]:
        """The names of what is due after `step` steps."""
        config = self.program.config
        intervals = {
            "telemetry": config.telemetry.every,
            "evaluation": config.evaluation.every,
            "checkpoint": config.checkpoint.every,
        }
        due = {what for what, every in intervals.items() if every and step % every == 0}
        return due | ({"removal"} if step in self.removals.steps else set())

    def do(
        self, state: TrainState, step: int, due: set[str], signal: Signals | None
    ) -> Signals | None:
        """Does what is due after `step`; returns the signal that ends the run, if there is one."""
        if signal is not None:  # first of all, since the process may be killed soon
            self.save(state)
            self.checkpoints.wait()
        if "removal" in due:
            self.removals.report(state, step)
        if "telemetry" in due:
            self.probe(state, step)
        if "evaluation" in due:
            self.evaluate(state, step)
        signal = signal or self.signals.signal
        if signal is None and "checkpoint" in due:
            self.save(state)
        return signal

    def probe(self, state: TrainState, step: int) -> np.ndarray | None:
        """Writes a line of telemetry; returns the entropies, or None without telemetry."""
        if not self.program.config.telemetry.every:
            return None
        fields = self.program.probe(state)
        self.journal.write("telemetry", step, **fields)
        return fields.get("entropy_nats")

    def evaluate(self, state: TrainState, step: int) -> Evaluation:
        """Writes and prints the loss over the validation split."""
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

    def save(self, state: TrainState) -> None:
        """Starts to write a checkpoint."""
        self.journal.flush()  # so that a step with a checkpoint has its metrics
        whole = self.program.placement.to_checkpoint(state)
        self.checkpoints.save(whole, self.program.dataset.fingerprint)
