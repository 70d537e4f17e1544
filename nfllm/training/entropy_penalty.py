"""The entropy regularizer of arXiv 2501.03489: heads away from their threshold pay for it.

With E_max = ln T, T the length of the map, each head has a threshold θ, a share of E_max; a margin
γ around it is free, and beyond it the whole distance counts, not its excess:

    δ = E - θ E_max        penalty = δ² where |δ| > γ E_max, else 0

`mean` is the paper's Algorithm 1: E is the mean of a head over all queries of a sequence. The
released code does something else, which is `row_sum`: it takes the penalty of every single query
and sums over them, so that the first query of a sequence, whose entropy is always 0, always pays,
and the weight is T times as large. Both average over heads and layers.

ln T cannot be reached: the mean over queries of a causal head is at most ln(T!)/T, 80% of it at T
128. A head that is uniform is penalized only if θ lies below `highest_threshold`.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

Reduction = Literal["mean", "row_sum"]


def entropy_penalty(
    entropy_LBHT: jax.Array,
    threshold_LH: jax.Array,
    *,
    margin: float,
    reduction: Reduction = "mean",
) -> jax.Array:
    """The penalty of each sequence, [B], to be weighted by λ and added to its loss.

    One value a sequence, so that the sum over a step does not depend on how it is cut into
    micro-batches and devices. Algorithm 1 leaves the batch open: here it is the mean over
    sequences. The released code sums over the sequences of a micro-batch.

    Args:
      entropy_LBHT: entropy of every query, in nats. NaN gives NaN.
      threshold_LH: θ of each head, a share of ln T.
      margin: γ, a share of ln T; the penalty is 0 also at exactly this distance.
      reduction: `mean` over the queries before the penalty, or `row_sum` over their penalties.

    Raises:
      ValueError: shapes that do not belong together, or an unknown reduction.
    """
    num_layers, _, num_heads, num_queries = entropy_LBHT.shape
    if threshold_LH.shape != (num_layers, num_heads):
        raise ValueError(
            f"threshold_LH: expected [L, H] = {(num_layers, num_heads)}, as in entropy_LBHT "
            f"{entropy_LBHT.shape}, got {threshold_LH.shape}"
        )
    if reduction not in ("mean", "row_sum"):
        raise ValueError(f"unknown reduction {reduction!r}; choose from mean, row_sum")
    maximum = math.log(num_queries)
    if reduction == "mean":
        entropy_LBHT = jnp.mean(entropy_LBHT, axis=-1, keepdims=True)
    delta = entropy_LBHT - maximum * threshold_LH[:, None, :, None]
    # Asked the other way round, NaN would count as free.
    penalty = jnp.where(jnp.abs(delta) <= margin * maximum, 0.0, jnp.square(delta))
    return jnp.mean(jnp.sum(penalty, axis=-1), axis=(0, 2))


def highest_threshold(margin: float, num_queries: int) -> float:
    """The θ from which on no causal head is penalized for too much entropy: 0.599 at γ 0.2, T 128.

    ln(T!) / (T ln T) - γ.

    Raises:
      ValueError: `num_queries` is below 2: a single query has no entropy.
    """
    if num_queries < 2:
        raise ValueError(f"num_queries={num_queries} must be at least 2")
    return math.lgamma(num_queries + 1) / (num_queries * math.log(num_queries)) - margin
