"""Events of a run about each norm that is removed, with the entropies before and after."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from nfllm.config import Config
from nfllm.config.removal import Removal, removals
from nfllm.trainer.journal import Journal
from nfllm.trainer.program import Program
from nfllm.training.removal import NEVER, RemovalSteps, make_gating, removal_steps
from nfllm.training.state import TrainState


class Removals:
    """The removals of a run, by their step.

    Attributes:
      steps: the steps at which a norm is removed.
    """

    def __init__(self, program: Program, journal: Journal) -> None:
        self._program = program
        self._journal = journal
        self._all = removals(program.config.model, program.config.removal)
        self.steps = frozenset(removal.step for removal in self._all)

    def report(self, state: TrainState, step: int) -> None:
        """Writes an event about the norm that is removed at `step`; `state` is that after `step`.

        Entropies, [L, H] in nats, are measured on the probe batch with the weights of `state` and
        the gates of `step` at all other norms, once with this norm and once without it. There are
        none about `first_position`, whose old statistic is no longer in `state`.
        """
        removal = next(removal for removal in self._all if removal.step == step)
        is_gated = removal.site != "first_position"
        taper = self._program.config.removal.taper_steps if is_gated else 0
        fields: dict[str, Any] = {"site": removal.site}
        if removal.layer is not None:
            fields["layer"] = removal.layer
        change = f"is removed over {taper} steps" if taper else "is removed"
        message = f"step {step}: the norm of {removal} {change}"
        config = self._program.config
        if is_gated and config.telemetry.every and config.model.has_attention_maps:
            place, whole = (removal.site, removal.layer), removal_steps(config)
            before, after = (
                self._entropies(state, step, {**whole, place: start})
                for start in (NEVER, step - taper)
            )
            fields |= {"entropy_before_nats": before, "entropy_after_nats": after}
            message += f"; mean entropy {np.mean(before):.3f} nats, then {np.mean(after):.3f}"
        self._journal.event("removed", step, message, **fields)

    def _entropies(self, state: TrainState, step: int, steps: RemovalSteps) -> np.ndarray:
        placed = jax.tree.map(lambda x: x.sharding, state.params)
        gating = make_gating(self._program.config, steps)
        gated = state.replace(params=jax.jit(gating, out_shardings=placed)(state.params, step))
        entropy_LH: np.ndarray = self._program.probe(gated)["entropy_nats"]
        return entropy_LH


def last_removal(config: Config, step: int) -> Removal | None:
    """The newest removal before batch number `step`; None if there was none."""
    past = [removal for removal in removals(config.model, config.removal) if removal.step < step]
    return past[-1] if past else None
