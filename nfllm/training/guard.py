"""How a step, and the host after it, handle a loss or gradient that is not finite."""

from __future__ import annotations

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.training.loss_scale import LossScale
from nfllm.training.removal import Gating
from nfllm.training.state import TrainState


class Guard(enum.IntEnum):
    """How a step handles a loss or gradient that is not finite.

    WATCHING: such a step changes only the guard, which becomes TRIPPED. TRIPPED: no step changes
    anything until the host resets the guard. OPEN: the update is applied in any case; after the
    first finite step the guard is WATCHING again.
    """

    WATCHING = 0
    TRIPPED = 1
    OPEN = 2


def apply_guarded(
    state: TrainState,
    update: Callable[[TrainState], TrainState],
    updates_finite: jax.Array,
    finite: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """The state after `update(state)`, unless its guard forbids it, and whether nothing changed.

    One gradient that is not finite would make every parameter NaN through the clipping factor. With
    float16 such an update is always left out, since its loss scale overflows by design; the step
    then still counts as `finite`.
    """
    is_open = state.guard == Guard.OPEN
    tripped = (state.guard == Guard.TRIPPED) | ~(finite | is_open)
    applies = ~tripped & (updates_finite | is_open)
    new = jax.lax.cond(applies, update, lambda state: state, state)
    scale = state.loss_scale
    if scale is not None:
        scale = jax.tree.map(
            lambda old, new: jnp.where(tripped, old, new), scale, scale.after(updates_finite)
        )
    watching = jnp.where(finite, Guard.WATCHING, state.guard)
    new = new.replace(
        step=state.step + ~tripped,
        skipped=state.skipped + (~tripped & ~applies),
        loss_scale=scale,
        guard=jnp.where(tripped, Guard.TRIPPED, watching).astype(state.guard.dtype),
    )
    return new, tripped


def is_sound(loss: jax.Array, updates_finite: jax.Array, scale: LossScale | None) -> jax.Array:
    """Whether the step counts as finite; an overflow by the loss scale alone is not a fault."""
    if scale is None:
        return updates_finite
    return jnp.isfinite(loss) & (updates_finite | (scale.factor > 1.0))


def leave_out_step(state: TrainState, gating: Gating) -> TrainState:
    """The state after a step that tripped the guard, without its update but with the next gates."""
    scale = state.loss_scale
    return state.replace(
        params=gating(state.params, state.step + 1),
        step=state.step + 1,
        skipped=state.skipped + 1,
        loss_scale=None if scale is None else scale.after(finite=False),
        guard=jnp.int32(Guard.WATCHING),
    )


def open_guard(state: TrainState) -> TrainState:
    """The state before a step that tripped the guard, set so that its update will be applied."""
    return state.replace(guard=jnp.int32(Guard.OPEN))
