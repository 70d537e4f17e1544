"""Why the entropy of a head is what it is: how far its logits spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import (
    Arrays,
    as_array,
    as_float32,
    causal_mask,
    check_axes,
    check_mask,
    is_concrete,
    masked_mean,
)
from nfllm.analysis.online_entropy import attention_entropy_from_logits
from nfllm.analysis.scaling import center, safe_sqrt, scale_of


def logit_spread(
    logits: Arrays, *, mask: ArrayLike | None = None, causal: bool = False
) -> jax.Array:
    r"""Standard deviation of the logits that a query sees, averaged over queries.

    .. math:: \frac{1}{T} \sum_t \sqrt{\frac{1}{n_t} \sum_s (z_{ts} - \bar z_t)^2}

    over the :math:`n_t` keys that query t sees, whose mean logit is :math:`\bar z_t`.

    It is what softmax turns into entropy: 0 gives uniform attention. Queries that see a single
    key have none and are left out. Logits at -Inf, or below half the most negative finite number
    of their type, are masked keys.

    Args:
      logits: `[..., H, T, S]`, scaled as the softmax sees them.
      mask: Booleans `[..., T, S]` that broadcast to `logits`, True where the query sees the key.
      causal: Whether query t sees only the keys `s <= t + (S - T)`.

    Returns:
      `[..., H]` float32, in the units of the logits; NaN where a logit that is seen is NaN or +Inf,
      or where no query sees two keys.

    Raises:
      ValueError: Wrong rank, or a mask that does not fit.

    Example:
      >>> logit_spread([[[0.0, 9.0], [1.0, 3.0]]], causal=True)  # the second query sees 1 and 3
      Array([1.], dtype=float32)
    """
    logits = as_array(logits)
    check_axes("logits", logits, "... H T S")
    mask = check_mask(mask, logits.shape)
    return _logit_spread(logits, mask, causal)


def _are_masked(logits: jax.Array) -> jax.Array:
    """Whether each logit is -Inf, or below half the most negative finite number of its type."""
    floating = jnp.issubdtype(logits.dtype, jnp.floating)
    lowest = jnp.finfo(logits.dtype if floating else jnp.float32).min
    return logits <= 0.5 * float(lowest)


@functools.partial(jax.jit, static_argnames="causal")
def _logit_spread(logits: jax.Array, mask: jax.Array | None, causal: bool) -> jax.Array:
    visible = ~_are_masked(logits)
    if causal:
        visible &= jnp.broadcast_to(causal_mask(*logits.shape[-2:]), logits.shape)
    if mask is not None:
        visible &= jnp.broadcast_to(mask, logits.shape)
    count = jnp.sum(visible, axis=-1)
    logits = jnp.where(visible, logits.astype(jnp.float32), 0.0)
    scale = scale_of(logits, axis=-1)
    _, deviation = center(logits / scale, -1, visible)
    variance = jnp.sum(deviation**2, axis=-1) / jnp.maximum(count, 1)
    return masked_mean(safe_sqrt(variance) * scale[..., 0], count > 1)


def entropy_by_temperature(
    logits: Arrays,
    temperatures: Arrays,
    *,
    mask: ArrayLike | None = None,
    causal: bool = False,
) -> jax.Array:
    """Entropy of `softmax(logits / temperature)` on a grid of temperatures.

    It distinguishes a head that is diffuse because its logits are small (its curve is that of
    another head, shifted) from one that ranks all keys alike. For queries and keys, pass `scale /
    temperature` to `attention_entropy_from_qk`.

    Args:
      logits: `[..., H, T, S]`, scaled as the softmax sees them at temperature 1.
      temperatures: `[N]`, positive, without unit.
      mask: Booleans `[..., T, S]`, as for `attention_entropy_from_logits`.
      causal: As for `attention_entropy_from_logits`.

    Returns:
      `[N, ..., H, T]` float32, in nats.

    Raises:
      ValueError: Wrong rank, a mask that does not fit, or a temperature that is not positive.

    Example:
      >>> entropy_by_temperature([[[0.0, 1.0]]], [0.1, 1.0, 10.0]).ravel().round(3)
      Array([0.   , 0.582, 0.692], dtype=float32)
    """
    logits, temperatures = as_array(logits), as_float32(temperatures)
    check_axes("logits", logits, "... H T S")
    check_axes("temperatures", temperatures, "N")
    mask = check_mask(mask, logits.shape)
    if is_concrete(temperatures) and not np.all(np.asarray(temperatures) > 0):
        raise ValueError(f"temperatures must be positive, got {temperatures}")

    masked = _are_masked(logits)
    visible = ~masked
    if mask is not None:
        visible &= jnp.broadcast_to(mask, logits.shape)
    if causal:
        visible &= jnp.broadcast_to(causal_mask(*logits.shape[-2:]), logits.shape)
    logits = logits.astype(jnp.float32)
    largest = jnp.max(logits, axis=-1, keepdims=True, where=visible, initial=-jnp.inf)
    # Seen from the row's largest on, no quotient of a low temperature overflows.
    below = logits - jnp.where(jnp.isfinite(largest), largest, 0.0)

    def at(temperature: jax.Array) -> jax.Array:
        # Divided, the lowest number of a type would not be that of a masked key any more.
        scaled = jnp.where(masked, -jnp.inf, below / temperature)
        scaled = jnp.where(jnp.isneginf(largest), logits, scaled)
        return attention_entropy_from_logits(scaled, mask=mask, causal=causal)

    return jax.lax.map(at, temperatures)
