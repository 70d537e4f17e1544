"""The gates of norms that are removed, as a function of the step (`nfllm.model.frozen_norm`).

    g = 1 before its removal at step r; (1 + cos(pi (step - r) / taper)) / 2; 0 from r + taper on

Gates depend only on the step, and the sigmas are parameters, so that a resumed run equals one that
was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.config import Config
from nfllm.config.removal import removals
from nfllm.model.frozen_norm import GATE, SIGMA
from nfllm.model.norm_sites import at_places, map_norms
from nfllm.model.parameters import Params

Gating = Callable[[Params, jax.Array | int], Params]

NEVER = np.iinfo(np.int32).max
"""The step of a norm that is not removed."""

RemovalSteps = Mapping[tuple[str, int | None], int]
"""The step of each removal, by site and layer."""


def removal_steps(config: Config) -> RemovalSteps:
    """The removals of a run."""
    return {(r.site, r.layer): r.step for r in removals(config.model, config.removal)}


def make_gating(config: Config, steps: RemovalSteps | None = None) -> Gating:
    """Returns `gating(params, step)`: the parameters with the gates for batch number `step`.

    From the removal of `first_position` on, the first position has the sigma of the others. Without
    any removal, parameters are unchanged.

    Args:
      config: the config of the run.
      steps: the removals; by default those of `config`.
    """
    steps = removal_steps(config) if steps is None else steps
    if not steps:
        return lambda params, step: params
    starts = at_places(config.model, steps, np.int32(NEVER))
    joined_at = steps.get(("first_position", None), NEVER)

    def gating(params: Params, step: jax.Array | int) -> Params:
        def gated(norm: Params, start_P: np.ndarray) -> Params:
            gate = gate_of(step, start_P, config.removal.taper_steps)
            return {**norm, GATE: gate, SIGMA: _joined(norm[SIGMA], step, joined_at)}

        return map_norms(gated, params, starts)

    return gating


def gate_of(step: jax.Array | int, start: np.ndarray, taper_steps: int) -> jax.Array:
    """The gates at a step, for norms whose removal begins at `start`."""
    past = jnp.asarray(step) - jnp.asarray(start)
    share = jnp.clip(past / taper_steps, 0.0, 1.0) if taper_steps else past >= 0
    return (1.0 + jnp.cos(jnp.pi * jnp.asarray(share, jnp.float32))) / 2.0


def _joined(sigma: jax.Array, step: jax.Array | int, joined_at: int) -> jax.Array:
    if joined_at == NEVER:
        return sigma
    return jnp.where(step >= joined_at, sigma[..., 1:], sigma)
