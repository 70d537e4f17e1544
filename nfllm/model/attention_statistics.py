"""Causal attention of a probe, which computes the statistics of telemetry block by block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.intermediates import record_statistic
from nfllm.model.projections import mix_values
from nfllm.model.shaping import shaped_map
from nfllm.model.softmax import entropy_by_product

_FEWEST_QUERIES = 32

Scores = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""From queries, keys and the mask of visible keys to scaled scores, without and with the mask."""


def mix_for_statistics(
    attention: nn.Module,
    config: ModelConfig,
    dtype: jnp.dtype,
    scores_of: Scores,
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
) -> jax.Array:
    """Mixes the values without dropout, and records the statistics of attention for telemetry.

    The attention probabilities of all sequences would be the largest tensors of a run. So they are
    computed for one block of queries after the other, each at most half the size of one sequence's.
    """
    batch, length = q_BTHK.shape[:2]
    block = min(length, max(_FEWEST_QUERIES, -(-length // (2 * batch))))
    num_blocks = -(-length // block)
    padding = ((0, 0), (0, num_blocks * block - length), (0, 0), (0, 0))
    blocks_NBTHK = jnp.moveaxis(
        jnp.pad(q_BTHK, padding).reshape(batch, num_blocks, block, *q_BTHK.shape[2:]), 1, 0
    )

    def attend(number_and_queries: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        number, q_BtHK = number_and_queries
        positions_t = number * block + jnp.arange(block)
        visible_tS = positions_t[:, None] >= jnp.arange(length)[None]
        counted_11tS = (visible_tS & (positions_t[:, None] < length))[None, None]
        scores_BHtS, logits_BHtS = scores_of(q_BtHK, k_BSHK, visible_tS[None, None])
        probs_BHtS = jax.nn.softmax(logits_BHtS)
        map_BHtS = shaped_map(attention, config, probs_BHtS, visible_tS[None, None])
        mixed_BtHK = mix_values(map_BHtS.astype(dtype), v_BSHK)
        return (
            mixed_BtHK,
            entropy_by_product(logits_BHtS, probs_BHtS),
            jnp.where(counted_11tS, jnp.abs(scores_BHtS), 0).max((0, 2, 3)),
            jnp.sum(counted_11tS & ~jnp.isfinite(logits_BHtS)),
        )

    mixed, entropy, max_abs, nonfinite = jax.lax.map(attend, (jnp.arange(num_blocks), blocks_NBTHK))
    entropy_BHT = jnp.moveaxis(entropy, 0, 2).reshape(batch, -1, num_blocks * block)
    record_statistic(
        attention,
        names.ENTROPY,
        lambda: entropy_BHT[..., :length].mean((0, 2)),
        collection=names.BY_PRODUCTS,
    )
    record_statistic(attention, names.LOGIT_MAX_ABS, lambda: max_abs.max(0))
    record_statistic(
        attention, f"{names.NONFINITE}_{names.ATTENTION_LOGITS}", lambda: nonfinite.sum()
    )
    joined = jnp.moveaxis(mixed, 0, 1).reshape(batch, num_blocks * block, *q_BTHK.shape[2:])
    return joined[:, :length]
