"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from nfllm.model.decoder import Decoder

_FIRST_LOSS_SCALE = 2.0**15


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale of float16: the factor, and finite steps since it last changed."""

    factor: jax.Array
    finite_steps: jax.Array


class TrainState(struct.PyTreeNode):
    """Everything that a step reads and writes.

    `step` counts the batches consumed, and so says where in the data the run is; `skipped` counts
    those whose update was left out because it was not finite. Updates applied: step - skipped.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    opt_state: optax.OptState
    loss_scale: LossScale | None


def init_state(
    key: jax.Array, model: Decoder, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step; pure, so that it can be compiled with any sharding."""
    tokens_BT = jnp.zeros((1, model.config.context_length), jnp.int32)
    params = model.init(key, tokens_BT, mutable=["params"])["params"]
    scales = model.dtype == jnp.float16
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_scale=LossScale(jnp.float32(_FIRST_LOSS_SCALE), jnp.int32(0)) if scales else None,
    )
