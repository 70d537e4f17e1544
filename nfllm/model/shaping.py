"""Shaped attention, and mixtures of value or output matrices with the identity.

With P the probabilities of the softmax, U the uniform distribution over the keys that a query sees,
and three gains for every head (arXiv 2311.01906, equation 5):

    A' = softmax_gain P + identity_gain I - uniform_gain U

All gains start at 1. Query matrices start at 0, hence P = U and A' = I exactly: at the start every
token attends only to itself. A' can have negative entries, so entropies are computed from P.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model.parameters import constant_param

_GAINS = ("softmax_gain", "identity_gain", "uniform_gain")


def declare_gains(attention: nn.Module, config: ModelConfig) -> None:
    """Gives `attention` the gains [H] that `shaped_map` reads."""
    for name in _GAINS:
        constant_param(attention, name, 1.0, (config.num_heads,))


def shaped_map(
    attention: nn.Module, config: ModelConfig, probs_BHTS: jax.Array, visible: jax.Array
) -> jax.Array:
    """The weights that mix values: A' with `model.attention_shaping="shaped"`, else P.

    Args:
      attention: the module that has the gains.
      config: config of the model.
      probs_BHTS: P, float32; the last key that a query sees must be that of its own token.
      visible: the keys that a query sees, bool, [1 or B, 1, T, S].
    """
    if config.attention_shaping == "none":
        return probs_BHTS
    num_seen = jnp.sum(visible, axis=-1, keepdims=True)
    own = jnp.arange(visible.shape[-1])[None, None, None] == num_seen - 1
    gains: list[jax.Array] = [attention.get_variable("params", name) for name in _GAINS]
    of_softmax, of_identity, of_uniform = (gain[None, :, None, None] for gain in gains)
    uniform = jnp.where(visible, 1.0 / num_seen, 0.0)
    # The first two terms cancel exactly at the start.
    return (of_softmax * probs_BHTS - of_uniform * uniform) + of_identity * own


def beside_identity(
    attention: nn.Module, name: str, same: jax.Array, projected: jax.Array
) -> jax.Array:
    """skip_gain x + residual_gain W x, scalars that start at 1 and 0, in the type of W x.

    Args:
      attention: the module that gets the parameters `<name>_skip_gain` and `<name>_residual_gain`.
      name: `value` or `output`.
      same: x.
      projected: W x.
    """
    skip = constant_param(attention, f"{name}_skip_gain", 1.0)
    residual = constant_param(attention, f"{name}_residual_gain", 0.0)
    mixed = skip * same.astype(jnp.float32) + residual * projected.astype(jnp.float32)
    return mixed.astype(projected.dtype)
