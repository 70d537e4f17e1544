"""Causal multi-head self-attention, which also records its intermediates."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.config.names import FUSED_ATTENTION
from nfllm.model import intermediates as names
from nfllm.model.attention_implementation import choose_implementation, queries_per_block
from nfllm.model.attention_statistics import mix_for_statistics
from nfllm.model.cache import start_of, visible_keys, with_earlier
from nfllm.model.dropout import dropout
from nfllm.model.intermediates import asked_for, record, record_statistic
from nfllm.model.normalizations import normalization
from nfllm.model.products import einsum_to_float32
from nfllm.model.projections import join_heads, mix_values, project, scores
from nfllm.model.regla import GatedLinearAttention
from nfllm.model.rotary import rotate
from nfllm.model.shaping import declare_gains, shaped_map
from nfllm.model.softmax import (
    ATTENTION_TRANSFORMS,
    divide_by_temperature,
    entropy_by_product,
    softmax_and_entropy,
)

# What a training step collects; blocks of queries can compute it.
_OF_A_STEP = {names.BY_PRODUCTS, names.LOSSES}
# What a telemetry probe collects, which needs no whole map.
_PROBES = ({names.STATISTICS}, {names.STATISTICS, names.BY_PRODUCTS})


class _ByProducts(NamedTuple):
    """Cheap reductions of some attention rows: entropy [B, H, T], and largest logit [H].

    They are functions, so that what the caller does not collect is not even traced.
    """

    entropy: Callable[[], jax.Array]
    logit_max: Callable[[], jax.Array]


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(K) + causal mask) v, with heads joined by an output matrix.

    Softmax is in float32. Parameters: `qkv_kernel` [D, 3, H, K] (query, key, value), `out_kernel`
    [H, K, D]; biases `qk_bias` [2, H, K], or `qkv_bias` [3, H, K] and `out_bias` [D]. With grouped
    heads, `q_kernel` [D, H, K] and `kv_kernel` [D, 2, G, K], and such biases, take the place of
    `qkv_kernel`: keys and values then have G heads (`nfllm.model.projections`). With
    `model.mixer="regla"`, `nfllm.model.regla` mixes the values.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        dropout_rows_B: jax.Array | None,
        value_in_BTD: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; values are computed from `value_in_BTD` if given."""
        config = self.config
        start_B = start_of(self)
        q_BTHK, k_BTHK, v_BTHK = project(self, config, x_BTD, value_in_BTD, self.dtype)
        if config.qk_normalization != "none":
            q_BTHK = normalization(config, "query", self.dtype, name="query_norm")(q_BTHK)
            k_BTHK = normalization(config, "key", self.dtype, name="key_norm")(k_BTHK)
        if config.rotary_dim:
            base = config.rotary_wavelength_base
            q_BTHK = rotate(q_BTHK, config.rotary_dim, base, start_B)
            k_BTHK = rotate(k_BTHK, config.rotary_dim, base, start_B)
        if config.softmax_temperature != "none":
            q_BTHK = divide_by_temperature(self, config, q_BTHK, start_B)
        if config.attention_shaping == "shaped":
            declare_gains(self, config)
        q_BTHK = record(self, names.QUERY, q_BTHK)
        k_BTHK = record(self, names.KEY, k_BTHK)
        v_BTHK = record(self, names.VALUE, v_BTHK)
        if config.mixer == "regla":
            mixer = GatedLinearAttention(config, self.dtype, name="regla")
            mixed_BTHK = mixer(x_BTD, q_BTHK, k_BTHK, v_BTHK)
        elif start_B is None:
            mixed_BTHK = self.mix(q_BTHK, k_BTHK, v_BTHK, dropout_rows_B)
        else:
            k_BSHK, v_BSHK = with_earlier(self, start_B, k_BTHK, v_BTHK)
            mixed_BTHK, _ = self._attend(q_BTHK, k_BSHK, v_BSHK, dropout_rows_B, start_B)
        mixed_BTHK = record(self, names.HEAD_OUT, mixed_BTHK)
        return join_heads(self, config, mixed_BTHK, self.dtype)

    def mix(
        self,
        q_BTHK: jax.Array,
        k_BTHK: jax.Array,
        v_BTHK: jax.Array,
        dropout_rows_B: jax.Array | None = None,
    ) -> jax.Array:
        """softmax(q kᵀ / sqrt(K) + causal mask) v, [B, T, H, K], by the chosen implementation."""
        implementation = choose_implementation(self.config, self.dtype)
        collections = asked_for(self)
        if implementation in FUSED_ATTENTION and not collections:  # forms no map
            return jax.nn.dot_product_attention(
                q_BTHK, k_BTHK, v_BTHK, is_causal=True, implementation=implementation
            )
        if collections in _PROBES and dropout_rows_B is None:  # maps of some queries at a time
            return mix_for_statistics(
                self, self.config, self.dtype, self._scores, q_BTHK, k_BTHK, v_BTHK
            )
        # Whole maps, for all collections and patches, or blocks of them, for a step's by-products.
        length = q_BTHK.shape[1]
        by_blocks = implementation == "blocks" and collections <= _OF_A_STEP
        block = queries_per_block(length) if by_blocks else length
        return self._mix_by_blocks(q_BTHK, k_BTHK, v_BTHK, dropout_rows_B, block)

    def _mix_by_blocks(
        self,
        q_BTHK: jax.Array,
        k_BTHK: jax.Array,
        v_BTHK: jax.Array,
        dropout_rows_B: jax.Array | None,
        block: int,
    ) -> jax.Array:
        """Mixes the values for blocks of `block` queries, with keys up to the end of the block."""
        mixed, by_products = [], []
        for start in range(0, q_BTHK.shape[1], block):
            stop = start + block
            mixed_BTHK, of_block = self._attend(
                q_BTHK[:, start:stop], k_BTHK[:, :stop], v_BTHK[:, :stop], dropout_rows_B
            )
            mixed.append(mixed_BTHK)
            by_products.append(of_block)

        def entropies() -> jax.Array:
            return jnp.concatenate([of_block.entropy() for of_block in by_products], axis=-1)

        def largest_logits() -> jax.Array:
            return jnp.stack([of_block.logit_max() for of_block in by_products]).max(0)

        kind = names.BY_PRODUCTS
        record_statistic(self, names.ENTROPY, lambda: _mean_of_heads(entropies()), kind)
        record_statistic(self, names.LOGIT_MAX, largest_logits, kind)
        record_statistic(self, names.ENTROPY, entropies, names.LOSSES)
        return jnp.concatenate(mixed, axis=1)

    def _attend(
        self,
        q_BTHK: jax.Array,
        k_BSHK: jax.Array,
        v_BSHK: jax.Array,
        dropout_rows_B: jax.Array | None,
        start_B: jax.Array | None = None,
    ) -> tuple[jax.Array, _ByProducts]:
        """Mixes the values for the queries of the last T of S positions, or of those at `start_B`.

        Probabilities are formed, and can be recorded where T = S.
        """
        visible_11TS = visible_keys(q_BTHK.shape[1], k_BSHK.shape[1], start_B)
        _, logits_BHTS = self._scores(q_BTHK, k_BSHK, visible_11TS)
        logits_BHTS = record(self, names.ATTENTION_LOGITS, logits_BHTS, where=visible_11TS)
        if self.is_mutable_collection(names.LOSSES):
            probs_BHTS, entropy_BHT = softmax_and_entropy(logits_BHTS)
            entropy: Callable[[], jax.Array] = lambda: entropy_BHT  # noqa: E731
        else:
            probs_BHTS = jax.nn.softmax(logits_BHTS)
            entropy = partial(entropy_by_product, logits_BHTS, probs_BHTS)
        probs_BHTS = record(self, names.ATTENTION_PROBS, probs_BHTS)
        if dropout_rows_B is not None:
            key = self.make_rng("dropout")
            probs_BHTS = dropout(probs_BHTS, self.config.attention_dropout, key, dropout_rows_B)
        map_BHTS = shaped_map(self, self.config, probs_BHTS, visible_11TS)
        mixed_BTHK = mix_values(map_BHTS.astype(self.dtype), v_BSHK)
        logit_max = partial(_largest_of_heads, logits_BHTS)
        return mixed_BTHK, _ByProducts(entropy, logit_max)

    def _scores(
        self, q_BTHK: jax.Array, k_BSHK: jax.Array, visible_11TS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Scaled scores [B, H, T, S], float32, and the same with the most negative finite number
        where a key is not visible.
        """
        # In float16 the product itself is rounded, and overflows, as under torch autocast: scaling
        # comes after it in the code of arXiv 2410.09637, and its NaN counts depend on that.
        product = jnp.einsum if self.dtype == jnp.float16 else einsum_to_float32
        scores_BHTS = scores(product, q_BTHK, k_BSHK)
        scores_BHTS = scores_BHTS.astype(jnp.float32) * self.config.head_dim**-0.5
        if self.config.attention_transform != "none":
            scores_BHTS = ATTENTION_TRANSFORMS[self.config.attention_transform](scores_BHTS)
        return scores_BHTS, jnp.where(visible_11TS, scores_BHTS, jnp.finfo(jnp.float32).min)


def _mean_of_heads(x_BHT: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x_BHT).mean((0, 2))


def _largest_of_heads(logits_BHTS: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(logits_BHTS).max((0, 2, 3))
