"""Softmax, the entropy of its rows, and its temperature."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model.cache import positions
from nfllm.model.parameters import constant_param

ATTENTION_TRANSFORMS: dict[str, Callable[[jax.Array], jax.Array]] = {}
"""Functions of each logit before mask and softmax, by `model.attention_transform`; all registered.
"""


def entropy_by_product(logits_BHTS: jax.Array, probs_BHTS: jax.Array) -> jax.Array:
    """Entropy [B, H, T] of a softmax, from logits and probabilities that exist anyway.

    H = log sum e^(s - m) - E_p[s - m] with the row's maximum m. The sum is that of the softmax,
    which the compiler computes once; the additional cost is a pass over the two tensors, without a
    third. No gradient flows.
    """
    return _entropy(*jax.lax.stop_gradient((logits_BHTS, probs_BHTS)))


@jax.custom_vjp
def softmax_and_entropy(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities p of logits [..., S], and their entropy H [...] in nats, both differentiable.

    dH/dz_j = -p_j (ln p_j + H), and 0 where p_j is 0. JAX's own derivative of -sum p ln p would be
    NaN wherever a probability is 0, as at every masked key, and would keep both logits and
    probabilities; this one keeps only the probabilities.

    Args:
      logits: with masked keys at -Inf or at a very low finite number.
    """
    probs = jax.nn.softmax(logits)
    return probs, _entropy(logits, probs)


_Residuals = tuple[jax.Array, jax.Array]


def _forward(logits: jax.Array) -> tuple[tuple[jax.Array, jax.Array], _Residuals]:
    probs, entropy = softmax_and_entropy(logits)
    return (probs, entropy), (probs, entropy)


def _backward(residuals: _Residuals, bars: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    probs, entropy = residuals
    probs_bar, entropy_bar = bars
    is_zero = probs == 0
    log_probs = jnp.log(jnp.where(is_zero, 1.0, probs))
    through_softmax = probs_bar - jnp.sum(probs * probs_bar, axis=-1, keepdims=True)
    through_entropy = entropy_bar[..., None] * (log_probs + entropy[..., None])
    return (probs * (through_softmax - through_entropy),)


softmax_and_entropy.defvjp(_forward, _backward)


def _entropy(logits: jax.Array, probs: jax.Array) -> jax.Array:
    distance = logits - jnp.max(logits, axis=-1, keepdims=True)
    log_sum = jnp.log(jnp.sum(jnp.exp(distance), axis=-1))
    # A logit of -Inf, which float16 can give, has probability 0 and an infinite distance.
    weighted = jnp.where(probs == 0, 0.0, probs * distance)
    return log_sum - jnp.sum(weighted, axis=-1)


def divide_by_temperature(
    attention: nn.Module, config: ModelConfig, q_BTHK: jax.Array, start_B: jax.Array | None
) -> jax.Array:
    """q_i / t_i: the softmax then sees q_i · k_j / (t_i sqrt(K)) (arXiv 2501.03489, equation 9).

    The parameter `temperature` of `attention` has one entry for each head, [H], or for each head
    and query position, [H, T]. Since it changes the queries, every implementation of attention
    works with it.
    """
    by_position = config.softmax_temperature == "head_position"
    shape = (config.num_heads, *((config.context_length,) if by_position else ()))
    temperature = constant_param(attention, "temperature", config.first_temperature, shape)
    if by_position:
        temperature = temperature.T[positions(q_BTHK.shape[1], start_B)]  # [1 or B, T, H]
    else:
        temperature = temperature[None, None]
    return (q_BTHK.astype(jnp.float32) / temperature[..., None]).astype(q_BTHK.dtype)
