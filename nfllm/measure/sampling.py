"""The choice of the next token from its logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.analysis.arrays import as_integer


class Sampling(NamedTuple):
    """How tokens are drawn; a rule that is None is not applied. See `make_sampling`."""

    temperature: jax.Array | None
    top_k: jax.Array | None
    top_p: jax.Array | None


def make_sampling(temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
    """The rules of `sample`.

    Args:
      temperature: logits are divided by it; 0 always chooses the most probable token.
      top_k: draw only from this number of most probable tokens, of equal ones the first; None:
        from all.
      top_p: draw only from the smallest set of most probable tokens whose probabilities add up to
        at least this (arXiv 1904.09751, section 3.1); None: from all.

    Raises:
      ValueError: a value outside its limits.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a finite number, at least 0")
    if top_k is not None and as_integer("top_k", top_k) < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to draw from all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1]; leave it out to draw from all tokens")
    if temperature == 0:
        return Sampling(None, None, None)
    if top_p == 1:
        top_p = None  # a sum of float32 may reach 1 before the last token
    smallest = np.finfo(np.float32).tiny  # what is smaller may count as 0
    return Sampling(
        jnp.float32(max(temperature, smallest)),
        None if top_k is None else jnp.int32(min(top_k, 2**31 - 1)),
        None if top_p is None else jnp.float32(max(top_p, smallest)),
    )


def sample(logits_V: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """A token drawn from softmax(kept(logits / temperature)), or the most probable one.

    `top_k` is applied first and `top_p` to the remaining tokens, as in transformers.
    """
    if sampling.temperature is None:
        return jnp.argmax(logits_V).astype(jnp.int32)
    # The maximum is subtracted first, since a small temperature would make many logits infinite.
    scaled_V = (logits_V - jnp.max(logits_V)) / sampling.temperature
    return jax.random.categorical(key, kept(scaled_V, sampling)).astype(jnp.int32)


def kept(logits_V: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits, with -Inf for tokens that `top_k` or `top_p` excludes."""
    if sampling.top_k is None and sampling.top_p is None:
        return logits_V
    ids_V = jnp.argsort(logits_V, descending=True)  # stable: of equal logits, the first id
    ranked_V = logits_V[ids_V]
    if sampling.top_k is not None:
        ranked_V = jnp.where(jnp.arange(len(ranked_V)) < sampling.top_k, ranked_V, -jnp.inf)
    if sampling.top_p is not None:
        probs_V = jax.nn.softmax(ranked_V)
        before_V = jnp.cumsum(probs_V) - probs_V
        ranked_V = jnp.where(before_V < sampling.top_p, ranked_V, -jnp.inf)
    return jnp.zeros_like(logits_V).at[ids_V].set(ranked_V)
