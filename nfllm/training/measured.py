"""Measurements of a training step, of its forward passes and of its gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY, LOGIT_MAX, UPDATES
from nfllm.model.layers import ATTENTION_BLOCKS, BLOCKS, join_layers
from nfllm.model.parameters import Params, Variables
from nfllm.training.objective import Forward


class Measured(NamedTuple):
    """Measurements of a micro-batch beside its gradients; `updates` are for `with_statistics`."""

    loss: jax.Array
    auxiliary: dict[str, jax.Array]
    entropy_LH: jax.Array | None
    logit_max_LH: jax.Array | None
    updates: Variables


def measured_of(forward: Forward) -> Measured:
    """The measurements of the forward pass of a micro-batch."""
    found = forward.collected
    layers = join_layers(found[BY_PRODUCTS]) if BY_PRODUCTS in found else {}
    return Measured(
        forward.loss,
        forward.auxiliary,
        layers.get(ENTROPY),
        layers.get(LOGIT_MAX),
        found.get(UPDATES, {}),
    )


def grad_norm_by_layer(grads: Params) -> jax.Array:
    """The L2 norm of each layer's gradient, [L]."""

    def squares(blocks: Params) -> jax.Array:
        leaves = jax.tree.leaves(blocks)
        return sum((jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in leaves), jnp.zeros(()))

    stacks = (BLOCKS, ATTENTION_BLOCKS)
    return jnp.sqrt(jnp.concatenate([squares(grads[name]) for name in stacks if name in grads]))
