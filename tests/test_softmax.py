"""Learned temperatures of the softmax (arXiv 2501.03489, equations 9 and 10)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from random_model import random_model
from training_parts import small_config

import nfllm
from nfllm.config import ModelConfig
from nfllm.model.softmax import divide_by_temperature, softmax_and_entropy

TOKENS = np.random.default_rng(0).integers(0, 50, (2, 9)).astype(np.int32)
HEADS, LENGTH = 2, 12


def with_temperature(params: Any, temperature: jax.Array) -> Any:
    """The same in both layers."""
    attention = {**params["blocks"]["attention"], "temperature": jnp.stack([temperature] * 2)}
    return {**params, "blocks": {**params["blocks"], "attention": attention}}


def probs(kind: str, temperature: jax.Array) -> np.ndarray:
    model, params = random_model(0.5, softmax_temperature=kind, normalization="layernorm")
    return np.asarray(
        nfllm.capture(model, with_temperature(params, temperature), TOKENS).attention_probs
    )


@pytest.mark.parametrize(("kind", "shape"), [("head", (2,)), ("head_position", (2, 12))])
def test_1_is_the_model_without_it_to_the_bit(kind: str, shape: tuple[int, ...]) -> None:
    plain, params = random_model(0.5, normalization="layernorm")
    model, _ = random_model(0.5, softmax_temperature=kind, normalization="layernorm")
    found = nfllm.capture(model, with_temperature(params, jnp.ones(shape)), TOKENS)
    expected = nfllm.capture(plain, params, TOKENS)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_array_equal(found.attention_probs, expected.attention_probs)


def test_each_head_and_position_divides_its_logits() -> None:
    model, params = random_model(0.5, softmax_temperature="head_position")
    temperature = jnp.linspace(0.3, 3, HEADS * LENGTH).reshape(HEADS, LENGTH)
    ones = nfllm.capture(model, with_temperature(params, jnp.ones((2, 12))), TOKENS)
    found = nfllm.capture(model, with_temperature(params, temperature), TOKENS)
    visible = np.tri(9, dtype=bool)
    expected = np.where(visible, ones.attention_logits[0], 0) / temperature[None, :, :9, None]
    np.testing.assert_allclose(
        np.where(visible, found.attention_logits[0], 0), expected, rtol=1e-5, atol=1e-6
    )
    from_queries = nfllm.analysis.attention_entropy_from_qk(
        jnp.moveaxis(found.query, 3, 2), jnp.moveaxis(found.key, 3, 2)
    )
    np.testing.assert_allclose(
        from_queries, nfllm.analysis.attention_entropy(found.attention_probs), atol=2e-6
    )


class Divided(nn.Module):
    """What attention does to its queries."""

    config: ModelConfig

    @nn.compact
    def __call__(self, q_BTHK: jax.Array, start_B: jax.Array | None) -> jax.Array:
        return divide_by_temperature(self, self.config, q_BTHK, start_B)


def test_beside_kept_keys_a_query_has_the_temperature_of_its_position() -> None:
    config = small_config(model={"softmax_temperature": "head_position"}).model
    temperature_HT = 1.0 + np.arange(HEADS * LENGTH, dtype=np.float32).reshape(HEADS, LENGTH)
    start_B = np.array([3, 7])
    found = Divided(config).apply(
        {"params": {"temperature": temperature_HT}}, jnp.ones((2, 2, HEADS, 1)), start_B
    )
    for row, start in enumerate(start_B):
        expected = 1 / temperature_HT[:, start : start + 2].T
        np.testing.assert_allclose(found[row, :, :, 0], expected, rtol=1e-6)


def test_a_constant_temperature_is_that_of_the_analysis() -> None:
    model, params = random_model(0.5, softmax_temperature="head")
    ones = nfllm.capture(model, with_temperature(params, jnp.ones(2)), TOKENS)
    found = nfllm.capture(model, with_temperature(params, jnp.full(2, 0.4)), TOKENS)
    expected = nfllm.analysis.entropy_by_temperature(ones.attention_logits[0], [0.4])
    entropy = nfllm.analysis.attention_entropy(found.attention_probs[0])
    np.testing.assert_allclose(entropy, np.asarray(expected).reshape(entropy.shape), atol=2e-6)


@pytest.mark.parametrize(
    ("temperature", "entropy"), [(1.0, 0.5623351446), (2.0, 0.6568063977), (0.5, 0.3250829734)]
)
def test_entropy_of_a_row_by_hand(temperature: float, entropy: float) -> None:
    def entropy_at(t: jax.Array) -> jax.Array:
        return softmax_and_entropy(jnp.array([0.0, math.log(3)]) / t)[1]

    value, slope = jax.value_and_grad(entropy_at)(temperature)
    assert float(value) == pytest.approx(entropy, abs=1e-6)
    if temperature == 1:
        assert float(slope) == pytest.approx(0.2263029302, abs=1e-6)


def test_a_hot_softmax_is_uniform_and_far_positions_do_not_matter() -> None:
    hot = probs("head_position", jnp.full((2, 12), 1e6))
    np.testing.assert_allclose(hot[0, 0, 0, 8], np.full(9, 1 / 9), atol=1e-5)
    temperature = jnp.ones((2, 12))
    changed = temperature.at[:, 9:].set(0.1)
    np.testing.assert_array_equal(
        probs("head_position", temperature), probs("head_position", changed)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_gradient_through_both_outputs_is_that_of_float64(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    z, bar_p, bar_h = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), rng.normal(size=3)
    z = np.asarray(jnp.asarray(z, dtype), np.float64)

    def total(z: jax.Array) -> jax.Array:
        p, h = softmax_and_entropy(z)
        return jnp.sum(p * bar_p) + jnp.sum(h * bar_h)

    found = jax.grad(lambda z: total(z).astype(jnp.float32))(jnp.asarray(z, dtype))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    h = -(p * np.log(p)).sum(-1, keepdims=True)
    expected = p * (bar_p - (p * bar_p).sum(-1, keepdims=True))
    expected -= bar_h[:, None] * p * (np.log(p) + h)
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance)
