"""QK-clip (arXiv 2507.20534): scales down a head's queries and keys when its logits are too large.

With S the largest scaled logit of a head in the step, and τ the limit, after the update

    η = min(1, τ / S)        W_q <- sqrt(η) W_q        W_k <- sqrt(η) W_k

and the same for their biases: the head's logits, a product of both, shrink by η. If heads share
keys, these must not change for the other heads, so W_q <- η W_q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nfllm.config import ModelConfig
from nfllm.model.layers import split_layers
from nfllm.model.parameters import Params

# Parameters that hold queries and keys: their axis of query and key, and their axis of heads.
_AXES = {"qkv_kernel": (2, 3), "qk_kernel": (2, 3), "qkv_bias": (1, 2), "qk_bias": (1, 2)}
# Parameters that hold only queries, since heads share keys: their axis of heads.
_QUERIES = {"q_kernel": 2, "q_bias": 1}


def clip_qk(params: Params, logit_max_LH: jax.Array, limit: float, config: ModelConfig) -> Params:
    """The parameters after clipping; those of heads with S <= τ are unchanged, bit for bit.

    Args:
      params: of the whole model.
      logit_max_LH: S, the largest logit of each head in the step. A head with NaN is not clipped.
      limit: τ.
      config: of the model.
    """
    factor_LH = jnp.where(logit_max_LH > limit, jnp.sqrt(limit / logit_max_LH), 1.0)
    clipped = dict(params)
    for stack, own_LH in split_layers(config, factor_LH).items():
        attention = dict(params[stack]["attention"])
        for name in attention.keys() & _AXES.keys():
            attention[name] = _scaled(attention[name], own_LH, *_AXES[name])
        for name in attention.keys() & _QUERIES.keys():
            x = attention[name]
            attention[name] = x * _along(own_LH**2, x, _QUERIES[name])
        clipped[stack] = {**params[stack], "attention": attention}
    return clipped


def _scaled(x: jax.Array, factor_LH: jax.Array, which: int, heads: int) -> jax.Array:
    """`x` with the first two entries of axis `which`, query and key, times the factors."""
    is_qk = (jnp.arange(x.shape[which]) < 2).reshape(
        [-1 if i == which else 1 for i in range(x.ndim)]
    )
    return jnp.where(is_qk, x * _along(factor_LH, x, heads), x)


def _along(factor_LH: jax.Array, x: jax.Array, heads: int) -> jax.Array:
    """The factors in a shape that broadcasts to `x`, whose axis of heads is `heads`."""
    return factor_LH.reshape([x.shape[i] if i in (0, heads) else 1 for i in range(x.ndim)])
