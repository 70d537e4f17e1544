"""The training state, which each step maps to the next."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct

from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
from nfllm.training.loss_scale import LossScale, first_loss_scale
from nfllm.training.removal import Gating


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

    @classmethod
    def of_params(cls, step: int, params: Params) -> SavedState:
        """A state of parameters alone, from which training cannot be resumed."""
        return cls(jnp.int32(step), jnp.int32(0), params, opt_state=(), loss_scale=None)

    def with_guard(self, guard: jax.Array) -> TrainState:
        """The state from which training continues."""
        return TrainState(**vars(self), guard=guard)


class TrainState(SavedState):
    """Everything that a step reads and writes; `guard` is a `nfllm.training.guard.Guard`."""

    guard: jax.Array

    def without_guard(self) -> SavedState:
        """The part that a checkpoint saves."""
        return SavedState(**{key: value for key, value in vars(self).items() if key != "guard"})


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
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_scale=first_loss_scale(model.dtype),
        guard=jnp.zeros((), jnp.int32),
    )
