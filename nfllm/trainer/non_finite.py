"""The handling of a training step whose loss or gradient is not finite (`training.non_finite`)."""

from __future__ import annotations

import dataclasses
import functools

from nfllm import analysis
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.journal import Journal
from nfllm.trainer.program import Program
from nfllm.trainer.removals import last_removal
from nfllm.training.diagnosis import describe
from nfllm.training.guard import leave_out_step, open_guard
from nfllm.training.removal import make_gating
from nfllm.training.state import TrainState
from nfllm.training.step import StepMetrics


class NonFiniteError(RuntimeError):
    """The loss or a gradient became NaN or infinite, and the policy is to stop."""


@dataclasses.dataclass
class NonFiniteSteps:
    """Reports such steps, and decides from which state training continues.

    A step that tripped the guard changed nothing, nor did the steps after it. So the state is still
    the step's input, from which the first bad value can be found (`nfllm.training.diagnosis`).

    Attributes:
      in_a_row: number of consecutive non-finite steps so far.
    """

    program: Program
    checkpoints: Checkpoints
    journal: Journal
    in_a_row: int = 0

    def count(self, values: StepMetrics) -> None:
        """Updates `in_a_row`; to be called for every step, in order."""
        self.in_a_row = 0 if values.finite else self.in_a_row + 1

    def resolve(self, state: TrainState, values: StepMetrics, step: int) -> TrainState:
        """The state from which training continues after step number `step` tripped the guard.

        `skip`: the state after the step, without its update. `continue`: the state before the step,
        with its guard open, so that the repeated step is applied although it is not finite. An
        event names the first bad site.

        Raises:
          NonFiniteError: the policy is `stop`, or too many consecutive steps were skipped.
        """
        config = self.program.config.training
        ledger = self.program.diagnose(state, step - 1, float(values.loss_scale))
        site = analysis.first_bad_site(ledger)
        message = (
            f"loss {float(values.loss_nats)} and gradient norm {float(values.grad_norm)} at step "
            f"{step}: {describe(ledger)}"
        )
        if (removal := last_removal(self.program.config, step)) is not None:
            message += f"; the last norm that was removed is {removal}, at step {removal.step}"
        self.journal.event("non_finite", step, message, **(site._asdict() if site else {}))
        limit = config.max_skipped_steps
        if config.non_finite == "stop":
            self._stop(message, step, "set training.non_finite to skip or continue")
        if config.non_finite == "skip" and self.in_a_row > limit:
            in_a_row = f"{self.in_a_row} steps in a row, training.max_skipped_steps={limit}"
            remedy = "raise training.max_skipped_steps, or set training.non_finite to continue"
            self._stop(f"{message}; {in_a_row}", step, remedy)
        change = open_guard
        if config.non_finite == "skip":
            change = functools.partial(leave_out_step, gating=make_gating(self.program.config))
        return self.program.placement.replace(state, change)

    def _stop(self, message: str, step: int, remedy: str) -> None:
        saved = self.checkpoints.steps()
        kept = f"the checkpoint of step {saved[-1]} is kept" if saved else "none was saved before"
        self.journal.event("stopped", step, f"stopped: {kept}")
        raise NonFiniteError(f"{message}; {kept}. Lower optimizer.learning_rate, or {remedy}")
