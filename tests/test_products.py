"""Which matrix products the training step consists of, and in which types they are computed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowered import lowered_step, products
from training_parts import VOCAB_SIZE, small_config

from nfllm.model.products import einsum_to_float32


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("section", "changes", "head_products"),
    [
        ("training", {}, 3),
        ("training", {"gradient_accumulation": 2}, 3),
        ("training", {"loss_tile_rows": 24}, 3),  # no logits twice
        ("model", {"tie_embeddings": False, "scan_layers": True}, 3),
        ("model", {"remat": True}, 3),
    ],
    ids=str,
)
def test_no_product_has_a_float32_operand(section, changes, head_products, platform):
    values = {"training": {"dtype": "bfloat16"}}
    values[section] = {**values.get(section, {}), **changes}
    found = products(lowered_step(small_config(**values), platform))
    over_vocabulary = [p for p in found if VOCAB_SIZE in {d for x in p for d in x.shape}]
    assert len(over_vocabulary) == head_products
    for product in found:
        assert (product.left.dtype, product.right.dtype) == ("bf16", "bf16"), product


def test_tiles_never_form_whole_logits():
    whole, tiled = (
        products(lowered_step(small_config(training={"loss_tile_rows": rows})))
        for rows in (None, 24)
    )
    rows_of = {
        name: {math.prod(p.result.shape[:-1]) for p in found if p.result.shape[-1] == VOCAB_SIZE}
        for name, found in (("whole", whole), ("tiled", tiled))
    }
    # 8 sequences of 12 tokens.
    assert rows_of == {"whole": {96}, "tiled": {24}}


def test_sixteen_bit_gradients_are_those_of_float32_to_their_rounding():
    generator = np.random.default_rng(0)
    a, b, weights = (
        generator.normal(size=s).astype(np.float32) for s in ((5, 32), (7, 32), (5, 7))
    )

    def gradients(dtype):
        def loss(a, b):
            product = einsum_to_float32("nd,vd->nv", a.astype(dtype), b.astype(dtype))
            assert product.dtype == jnp.float32
            return jnp.sum(product * weights)

        return jax.grad(loss, argnums=(0, 1))(a, b)

    exact = (weights @ b, weights.T @ a)
    for found, expected in zip(gradients(jnp.float32), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients(jnp.bfloat16), exact, strict=True):
        # Three roundings of 2^-9 relative to terms of size about 1, seven at most.
        np.testing.assert_allclose(found, expected, atol=3 * 2**-9 * 7)
        assert np.abs(found - expected).max() > 1e-4
