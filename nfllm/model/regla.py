"""ReGLA (arXiv 2502.01578): gated linear attention, a mixer without softmax.

With the queries, keys and values q, k, v [K] of a head, and the input x [D] of the block:

    φ(q_t) = exp(q_t - max q_t) / (e sqrt(K (e² - 1)))      φ(k_t) = exp(k_t - m_t)
    g = sigmoid(W_g x + b_g)      r = sigmoid(W_r x + b_r)      F = (1 - r) g² + r (1 - (1 - g)²)
    S_t = exp(m_{t-1} - m_t) F_t S_{t-1} + v_t φ(k_t)ᵀ          F_t [K] scales rows of S [K, K]
    o_t = RMSNorm(S_t φ(q_t))

The paper's code is not public, and its descriptions differ in four points. Here:

1. m_t is the largest entry of the keys up to t. Over the whole sequence, as printed, it would leak
   later tokens. Since RMSNorm divides it out again, the choice matters only through its epsilon.
2. The gates read x, not the values of the head.
3. The norm is an RMSNorm of each head, with one scale [K] for all heads, before the output matrix.
4. The biases of the gates start at 0, and so F near 1/2.

Nothing here is a row of probabilities: attention entropy is not defined.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model.normalizations import RMSNorm
from nfllm.model.parameters import constant_param
from nfllm.model.weight_norm import attention_kernel

_CHUNK = 16
_LEAST_GATE = 1e-30  # its logarithm is finite


class GatedLinearAttention(nn.Module):
    """The mixer: `forget_kernel` (W_g) and `refine_kernel` (W_r) [D, H, K], biases [H, K]."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, q_BTHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array
    ) -> jax.Array:
        """The output of each head, [B, T, H, K]; with grouped heads, keys and values have G."""
        config = self.config
        every = config.num_heads // config.kv_heads
        q, k, v = (x.astype(jnp.float32) for x in (q_BTHK, k_BTGK, v_BTGK))
        k, v = jnp.repeat(k, every, axis=2), jnp.repeat(v, every, axis=2)
        scale = 1.0 / (math.e * math.sqrt(config.head_dim * (math.e**2 - 1)))
        phi_q = scale * jnp.exp(q - largest_entry(q))
        largest = jax.lax.cummax(largest_entry(k), axis=1)
        before = jnp.concatenate([largest[:, :1], largest[:, :-1]], axis=1)
        forget = refined_gate(self._gate("forget", x_BTD), self._gate("refine", x_BTD))
        log_decay = jnp.log(jnp.maximum(forget, _LEAST_GATE)) + (before - largest)
        mixed = gated_recurrence(phi_q, jnp.exp(k - largest), v, log_decay)
        return RMSNorm(epsilon=config.norm_epsilon, dtype=self.dtype, name="norm")(mixed)

    def _gate(self, name: str, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        heads = (config.num_heads, config.head_dim)
        init = nn.initializers.normal(config.block_init_std)
        kernel = self.param(f"{name}_kernel", init, (config.embed_dim, *heads))
        kernel = attention_kernel(self, config, f"{name}_kernel", kernel[:, None])[:, 0]
        bias = constant_param(self, f"{name}_bias", 0.0, heads)
        z_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, kernel.astype(self.dtype))
        return jax.nn.sigmoid(z_BTHK.astype(jnp.float32) + bias[None, None])


def largest_entry(x: jax.Array) -> jax.Array:
    """The maximum over the last axis, which is kept; of equal entries the first has the derivative.

    That of `jnp.max` is divided by the number of entries that equal the maximum. XLA may compute x
    once for the maximum and once more to compare, with another rounding: then none does, and the
    gradient is NaN.
    """
    first = jax.nn.one_hot(jnp.argmax(x, axis=-1), x.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(first, x, 0), axis=-1, keepdims=True)


def refined_gate(g: jax.Array, r: jax.Array) -> jax.Array:
    """F = (1 - r) g² + r (1 - (1 - g)²): where g is near 0 or 1, r can still move it."""
    return (1 - r) * g**2 + r * (1 - (1 - g) ** 2)


def gated_recurrence(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, log_decay_BTHV: jax.Array
) -> jax.Array:
    """S_t q_t with S_t = exp(log_decay_t) S_{t-1} + v_t k_tᵀ and S_{-1} = 0, [B, T, H, V].

    It is computed chunk by chunk. Within a chunk, every pair of positions is weighted by the decay
    between them, whose exponents are at most 0 if `log_decay` is; S [B, H, V, K] is passed from one
    chunk to the next.
    """
    batch, length = q_BTHK.shape[:2]
    size = min(length, _CHUNK)
    num_chunks = -(-length // size)

    def chunks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, num_chunks * size - length), (0, 0), (0, 0)))
        return jnp.moveaxis(padded.reshape(batch, num_chunks, size, *x.shape[2:]), 1, 0)

    is_earlier = jnp.tri(size, dtype=bool)[None, :, :, None, None]

    @jax.checkpoint
    def mix(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, log_decay = chunk
        total = jnp.cumsum(log_decay, axis=1)
        between_BTSHV = jnp.where(is_earlier, total[:, :, None] - total[:, None], -jnp.inf)
        weight_BTSH = jnp.einsum("BTHK,BSHK->BTSH", q, k)
        within = jnp.einsum("BTSH,BTSHV->BTHV", weight_BTSH, jnp.exp(between_BTSHV) * v[:, None])
        earlier = jnp.exp(total) * jnp.einsum("BHVK,BTHK->BTHV", state, q)
        left = jnp.exp(total[:, -1:] - total) * v
        state = jnp.exp(total[:, -1])[..., None] * state + jnp.einsum("BTHV,BTHK->BHVK", left, k)
        return state, within + earlier

    start = jnp.zeros((batch, *v_BTHV.shape[2:], k_BTHK.shape[-1]), jnp.float32)
    each = tuple(map(chunks, (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHV)))
    _, mixed = jax.lax.scan(mix, start, each)
    return jnp.moveaxis(mixed, 0, 1).reshape(batch, -1, *v_BTHV.shape[2:])[:, :length]
