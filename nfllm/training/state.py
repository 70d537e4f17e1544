"""The training state, which each step maps to the next."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
import optax
from flax import struct

from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
from nfllm.training.removal import Gating

_FIRST_LOSS_SCALE = 2.0**15


# As in torch.cuda.amp.GradScaler: halve on overflow, double after 2000 finite steps.
_GROWTH_STEPS = 2000


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale of float16: the factor, and finite steps since it last changed."""

    factor: jax.Array
    finite_steps: jax.Array

    def after(self, finite: jax.Array | bool) -> LossScale:
        """The scale for the next step, given whether the gradients of this step were finite."""
        finite_steps = jnp.where(finite, self.finite_steps + 1, 0)
        grows = finite_steps >= _GROWTH_STEPS
        grown = jnp.where(grows, 2 * self.factor, self.factor)
        return LossScale(
            jnp.where(finite, grown, self.factor / 2), jnp.where(grows, 0, finite_steps)
        )


class Guard(enum.IntEnum):
    """How a step handles a loss or gradient that is not finite.

    WATCHING: such a step changes only the guard, which becomes TRIPPED. TRIPPED: no step changes
    anything until the host resets the guard. OPEN: the update is applied in any case; after the
    first finite step the guard is WATCHING again.
    """

    WATCHING = 0
    TRIPPED = 1
    OPEN = 2


class SavedState(struct.PyTreeNode):
    """The part of the training state that a checkpoint holds.

    `step` is the number of batches consumed, and so the position in the data; `skipped` is the
    number of batches whose update was left out because it was not finite. Updates applied: step -
    skipped.
    """

    step: jax.Array
    skipped: jax.Array
    params: Params
    opt_state: optax.OptState
    loss_scale: LossScale | None

    def with_guard(self, guard: jax.Array) -> TrainState:
        """The state from which training continues."""
        return TrainState(**vars(self), guard=guard)


class TrainState(SavedState):
    """Everything that a step reads and writes; `guard` is one of `Guard`."""

    guard: jax.Array

    def without_guard(self) -> SavedState:
        """The part that a checkpoint saves."""
        return SavedState(**{key: value for key, value in vars(self).items() if key != "guard"})


def leave_out_step(state: TrainState) -> TrainState:
    """The state after a step that tripped the guard, without its update."""
    scale = state.loss_scale
    return state.replace(
        step=state.step + 1,
        skipped=state.skipped + 1,
        loss_scale=None if scale is None else scale.after(finite=False),
        guard=jnp.int32(Guard.WATCHING),
    )


def open_guard(state: TrainState) -> TrainState:
    """The state before a step that tripped the guard, set so that its update will be applied."""
    return state.replace(guard=jnp.int32(Guard.OPEN))


def init_state(
    key: jax.Array,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    objective_params: dict[str, jax.Array] | None = None,
    gating: Gating | None = None,
) -> TrainState:
    """The state before the first step; pure, so that it can be compiled with any sharding.

    `objective_params` are parameters of the loss rather than the model, kept in
    `params["objective"]`; `gating` comes from `nfllm.training.removal`.
    """
    tokens_BT = jnp.zeros((1, model.config.context_length), jnp.int32)
    params = model.init(key, tokens_BT, mutable=["params"])["params"]
    if objective_params:
        params = {**params, "objective": objective_params}
    if gating is not None:
        params = gating(params, 0)
    scales = model.dtype == jnp.float16
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_scale=LossScale(jnp.float32(_FIRST_LOSS_SCALE), jnp.int32(0)) if scales else None,
        guard=jnp.zeros((), jnp.int32),
    )
