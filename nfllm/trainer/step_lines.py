"""Reads the metrics of training steps from the devices, and writes lines of them."""

from __future__ import annotations

import dataclasses

import jax

from nfllm.config import TrainingConfig
from nfllm.trainer.clock import Clock
from nfllm.trainer.input_watch import InputWatch
from nfllm.trainer.journal import Journal
from nfllm.trainer.non_finite import NonFiniteSteps
from nfllm.training.step import StepMetrics


@dataclasses.dataclass
class StepLines:
    """Reads the metrics of every step, in order, and writes a line if one is due."""

    config: TrainingConfig
    journal: Journal
    clock: Clock
    input: InputWatch
    faults: NonFiniteSteps

    def read(self, metrics: StepMetrics, step: int, waited: float) -> StepMetrics | None:
        """Waits for the metrics of step number `step`; returns them if it tripped the guard.

        `waited` is the total time, in seconds, that the run has waited for data.
        """
        values = jax.device_get(metrics)
        self.clock.tick()
        self.faults.count(values)
        is_repeated = values.tripped and self.config.non_finite != "skip"
        if not is_repeated:
            self.write(values, step, waited)
        return values if values.tripped else None

    def write(self, values: StepMetrics, step: int, waited: float) -> None:
        """Writes a line of metrics if one is due."""
        if step % self.config.log_every and step != self.config.steps:
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
        left = self.clock.seconds_left(self.config.steps - step)
        self.journal.update(step, float(values.loss_nats), speed, left)
