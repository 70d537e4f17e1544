"""What a step, and the host after it, do about a loss or gradient that is not finite."""

from __future__ import annotations

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.training.loss_scale import LossScale
from nfllm.training.state import TrainState


class Guard(enum.IntEnum):
    """What a step does about a loss or gradient that is not finite.

    WATCHING: such a step changes nothing but the guard, which becomes TRIPPED. TRIPPED: no step
    changes anything, until the host has looked. OPEN: the update is applied whatever it is; the
    first finite step ends this.
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
    """The state after `update(state)`, or as its guard has it, and whether nothing changed.

    One gradient that is not finite would make every parameter NaN through the clipping factor.
    float16 leaves such an update out by itself, since its scale overflows by design: the step is
    `finite` all the same.
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
    """Whether the step is finite; a scaled gradient that overflows only had too big a scale."""
    if scale is None:
        return updates_finite
    return jnp.isfinite(loss) & (updates_finite | (scale.factor > 1.0))


def leave_out_step(state: TrainState) -> TrainState:
    """The state past a step that tripped the guard, without its update."""
    scale = state.loss_scale
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + 1,
        loss_scale=None if scale is None else scale.after(finite=False),
        guard=jnp.int32(Guard.WATCHING),
    )


def open_guard(state: TrainState) -> TrainState:
    """The state before a step that tripped the guard, which will now be applied."""
    return state.replace(guard=jnp.int32(Guard.OPEN))
