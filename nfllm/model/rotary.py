"""Rotary position embedding over the leading features of each head, as in GPT-NeoX and Llama."""

import jax
import jax.numpy as jnp

from nfllm.model.cache import positions


def rotate(
    x_BTHK: jax.Array, rotary_dim: int, base: float, start_B: jax.Array | None = None
) -> jax.Array:
    """Rotates features i and i + R/2 of position t by the angle t * base^(-2i/R), R = rotary_dim.

    Only the first `rotary_dim` features of each head are rotated; the others are unchanged (arXiv
    2104.09864, equation 34, in the half-split layout of GPT-NeoX, arXiv 2204.06745, section 2.1,
    which is also that of Llama in transformers).

    Args:
      x_BTHK: queries or keys.
      rotary_dim: even number of features that are rotated, at most K.
      base: base of the geometric progression of wavelengths.
      start_B: position of the first token of each sequence; None: 0.

    Returns:
      [B, T, H, K], in the type of x.
    """
    half = rotary_dim // 2
    frequencies = base ** (-2.0 * jnp.arange(half, dtype=jnp.float32) / rotary_dim)
    t_BT = positions(x_BTHK.shape[1], start_B).astype(jnp.float32)
    angles = t_BT[..., None] * frequencies[None, None, :]
    cos, sin = (f(angles)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    x = x_BTHK.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half:rotary_dim], x[..., rotary_dim:]
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHK.dtype)
