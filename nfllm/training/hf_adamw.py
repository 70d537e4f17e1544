"""AdamW as in older versions of `transformers`, the optimizer of arXiv 2410.09637's models."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nfllm.model.parameters import Mask, Params
from nfllm.training.schedules import Schedule


def _one_minus_power(base: float, exponent: jax.Array) -> jax.Array:
    """1 - base^exponent, for exponents of at least 1.

    In float32, 1 - 0.999 has a relative error of 1e-5.
    """
    return -jnp.expm1(exponent * math.log(base)) if base else jnp.ones_like(exponent)


class HfAdamWState(NamedTuple):
    """Number of updates done, and Adam's two moments."""

    num_updates: jax.Array
    mu: Params
    nu: Params


def hf_adamw(
    schedule: Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    """AdamW as in `transformers.AdamW`, the optimizer of arXiv 2410.09637's code.

    With t = 1, 2, ...:  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;
    p' = p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps);  p'' = p' - lr wd p'.
    Unlike in `optax.adamw`, eps is added to sqrt(v) before bias correction, and the decay acts on
    the parameter after the Adam update.

    Args:
      schedule: learning rate of update t - 1.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to sqrt(v).
      weight_decay: wd, for the parameters that `mask` selects.
      mask: function of the parameters, a tree of booleans.
    """

    def init(params: Params) -> HfAdamWState:
        zeros = optax.tree.zeros_like(params)
        return HfAdamWState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        grads: Params, state: HfAdamWState, params: Params | None = None
    ) -> tuple[Params, HfAdamWState]:
        assert params is not None  # optax allows it where no parameter decays
        num_updates = state.num_updates + 1
        t = num_updates.astype(jnp.float32)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        rate = schedule(state.num_updates)
        size = rate * jnp.sqrt(_one_minus_power(b2, t)) / _one_minus_power(b1, t)

        def change(p: jax.Array, m: jax.Array, v: jax.Array, decays: bool) -> jax.Array:
            moved = -size * m / (jnp.sqrt(v) + eps)
            return moved - rate * weight_decay * (p + moved) if decays else moved

        return jax.tree.map(change, params, mu, nu, mask(params)), HfAdamWState(num_updates, mu, nu)

    return optax.GradientTransformation(init, update)
