"""The entropy regularizer of arXiv 2501.03489: penalizes heads far from an entropy threshold.

With E_max = ln T, T the number of queries, each head has a threshold θ, a share of E_max. Within a
margin γ there is no penalty; beyond it the whole distance counts, not only what exceeds γ:

    δ = E - θ E_max        penalty = δ² where |δ| > γ E_max, else 0

`mean` is the paper's Algorithm 1: E is the mean entropy of a head over all queries of a sequence.
The released code differs and corresponds to `row_sum`: it computes the penalty of every single
query and sums over queries. So the first query of a sequence, whose entropy is always 0, is always
penalized, and the weight is T times as large. Both average over heads and layers.

A causal head cannot reach ln T: its mean over queries is at most ln(T!)/T, 80% of ln T at T = 128.
A uniform head is penalized only if θ is below `highest_threshold`.
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

    There is one value for each sequence, so that the sum over a step does not depend on how it is
    split into micro-batches and devices. Algorithm 1 does not say how to reduce over the batch;
    here it is the mean over sequences. The released code sums over those of a micro-batch.

    Args:
      entropy_LBHT: entropy of every query, in nats. NaN gives NaN.
      threshold_LH: θ of each head, a share of ln T.
      margin: γ, a share of ln T; at exactly this distance the penalty is still 0.
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
    # With the comparison the other way round, the penalty of NaN would be 0.
    penalty = jnp.where(jnp.abs(delta) <= margin * maximum, 0.0, jnp.square(delta))
    return jnp.mean(jnp.sum(penalty, axis=-1), axis=(0, 2))


def highest_threshold(margin: float, num_queries: int) -> float:
    """The smallest θ at which no causal head is penalized for too much entropy.

    It is ln(T!) / (T ln T) - γ, with T `num_queries` and γ `margin`.

    Raises:
      ValueError: `num_queries` is below 2: a single query has no entropy.

    Example:
      >>> round(highest_threshold(margin=0.2, num_queries=128), 3)
      0.599
    """
    if num_queries < 2:
        raise ValueError(f"num_queries={num_queries} must be at least 2")
    return math.lgamma(num_queries + 1) / (num_queries * math.log(num_queries)) - margin
