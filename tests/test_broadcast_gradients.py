"""Gradients of all parameters over a long batch, in every type, against sums in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import VOCAB_SIZE, small_config

from nfllm.model.decoder import Decoder
from nfllm.model.parameters import _OF_MATRICES, KINDS, Kind

pytestmark = pytest.mark.slow

SMALL = {"num_layers": 1, "embed_dim": 8, "mlp_dim": 16, "context_length": 8}
MODELS = {
    "gpt2": {
        "attention_bias": "all",
        "mlp_bias": True,
        "normalization": "derf",
        "activation": "learnable_leaky_relu",
        "negative_slope": 0.2,
    },
    "gpt_neox": {
        "architecture": "gpt_neox",
        "rotary_fraction": 1.0,
        "attention_bias": "qk",
        "normalization": "rmsnorm",
        "qk_normalization": "rmsnorm",
        "head_bias": True,
        "activation": "learnable_leaky_relu",
        "slope_sharing": "model",
        "negative_slope": 0.2,
    },
    "llama": {
        "architecture": "llama",
        "num_kv_heads": 1,
        "attention_bias": "all",
        "mlp": "gated",
        "mlp_bias": True,
        "normalization": "rmsnorm",
        "activation": "silu",
        "head_gains": True,
        "softmax_temperature": "head",
        "attention_shaping": "shaped",
        "query_init_std": 0.02,
        "mlp_skip_gains": True,
        "embedding_scale": "learned",
        "branch_scaling": "learned",
    },
    "regla": {"mixer": "regla", "normalization": "layernorm"},
}
# Relative errors: of sums over tokens; of products, which are rounded once a sequence; and of what
# 16 bits make of the terms themselves. In the type itself, sums are off by 4e-4 to 7e-3 (float16)
# and 4e-3 to 0.2 (bfloat16).
TOLERANCES = {
    "float32": (2e-6, 2e-6, 2e-6),
    "float16": (5e-5, 5e-4, 5e-3),
    "bfloat16": (3e-3, 4e-3, 0.15),
}
# Matrices; gains that scale a float32 matrix or a float32 sum; factors in a norm, as alpha is; and
# the threshold of a loss.
REPRESENTED = {
    "kernel",
    "qk_kernel",
    *(f"{name}gain" for name in _OF_MATRICES),
    *(f"{name}_{kind}_gain" for name in ("value", "output") for kind in ("skip", "residual")),
    "residual_gain",
    "mlp_alpha",
    "entropy_threshold",
    "gate",
}
PRODUCTS = ("kernel", "token_embedding", "head_embedding")


@functools.cache
def gradients(name: str, dtype: str) -> tuple[Any, Any]:
    """Of a sum over all targets: of the batch at once, and of each of its sequences."""
    config = small_config(model=SMALL | MODELS[name]).model
    model = Decoder(config, VOCAB_SIZE, jnp.dtype(dtype))
    rng = np.random.default_rng(0)
    tokens_BT = jnp.asarray(rng.integers(0, VOCAB_SIZE, (256, 8)), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens_BT)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.2, 0.6, p.shape), p.dtype), shapes)
    weights_V = jnp.asarray(rng.normal(0.1, 0.3, VOCAB_SIZE), jnp.float32)

    def total(params: Any, tokens_BT: jax.Array) -> jax.Array:
        return jnp.sum(model.apply({"params": params}, tokens_BT) @ weights_V)

    whole = jax.jit(jax.grad(total))(params, tokens_BT)
    each = jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0)))(params, tokens_BT[:, None])
    return whole, jax.tree.map(lambda g: np.asarray(g, np.float64), each)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.float64(x) for path, x in leaves
    }


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", MODELS)
def test_sums_over_tokens_are_those_of_float64(name, dtype):
    found, of_type = map(by_path, gradients(name, dtype))
    exact = by_path(gradients(name, "float32")[1])
    of_sum, of_product, of_terms = TOLERANCES[dtype]
    for path, terms in exact.items():
        # Some gradients nearly cancel over the batch; what is left is as exact as the terms were.
        size = max(np.linalg.norm(terms.sum(0)), 0.2 * np.abs(terms).sum(0).max())
        tolerance = of_product if path.endswith(PRODUCTS) else of_sum
        assert np.linalg.norm(found[path] - of_type[path].sum(0)) < tolerance * size, path
        assert np.linalg.norm(found[path] - terms.sum(0)) < of_terms * size, path


def test_no_parameter_is_left_out():
    """A new one joins a model above, or those that others of its kind here stand for."""
    learned = {name for name, kind in KINDS.items() if kind is not Kind.STATISTIC}
    found = set()
    for changes in MODELS.values():
        model = Decoder(small_config(model=SMALL | changes).model, VOCAB_SIZE)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
        found |= {path[-1].key for path, _ in leaves}
    assert found | REPRESENTED == learned
    assert not found & REPRESENTED
