"""The entropy regularizer: hand values, finite differences in float64, and code as released."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfllm.analysis import causal_entropy_ceiling
from nfllm.model.softmax import softmax_and_entropy
from nfllm.training.entropy_penalty import (
    Reduction,
    entropy_penalty,
    highest_threshold,
)

UNIFORM = np.log([1.0, 2.0, 3.0, 4.0])  # entropies of a causal head that is uniform, T 4
IDENTITY = np.zeros(4)


penalties = jax.jit(entropy_penalty, static_argnames=("margin", "reduction"))


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def penalty_of(rows: np.ndarray, reduction: Reduction, threshold: float = 0.5) -> float:
    """Of one layer with one head, and one sequence."""
    entropy = jnp.asarray(rows)[None, None, None]
    theta = jnp.full((1, 1), threshold)
    return float(penalties(entropy, theta, margin=0.2, reduction=reduction)[0])


@pytest.mark.parametrize(
    ("rows", "reduction", "expected"),
    [
        (UNIFORM, "mean", 0.0),
        (IDENTITY, "mean", 0.4804530139),
        (UNIFORM, "row_sum", 1.1253079817),
        (IDENTITY, "row_sum", 1.9218120557),
    ],
)
def test_hand_values(rows: np.ndarray, reduction: Reduction, expected: float) -> None:
    assert penalty_of(rows, reduction) == pytest.approx(expected, abs=1e-6)


def test_the_mean_over_heads_and_layers_and_its_gradient_by_the_threshold() -> None:
    entropy = jnp.asarray(np.stack([UNIFORM, IDENTITY]))[None, None]
    theta = jnp.full((1, 2), 0.5)

    def loss(theta: jax.Array) -> jax.Array:
        return entropy_penalty(entropy, theta, margin=0.2).sum()

    assert float(loss(theta)) == pytest.approx(0.2402265070, abs=1e-6)
    # Of two heads, so half of -2 delta ln 4 = 1.9218120557.
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(theta), [[0, 1.9218120557 / 2]], rtol=1e-6)
    two_layers = jnp.concatenate([entropy, jnp.zeros_like(entropy)])
    penalty = penalties(two_layers, jnp.full((2, 2), 0.5), margin=0.2)
    np.testing.assert_allclose(penalty, [0.75 * 0.4804530139], rtol=1e-6)


def test_it_is_free_at_exactly_the_margin() -> None:
    maximum = np.float32(math.log(16))
    for entropy, free in ((0.25 * maximum, True), (np.nextafter(0.25 * maximum, 9), False)):
        rows = jnp.full((1, 1, 1, 16), entropy, jnp.float32)
        penalty = penalties(rows, jnp.zeros((1, 1)), margin=0.25, reduction="row_sum")
        assert (float(penalty[0]) == 0) == free


@pytest.mark.parametrize("reduction", ["mean", "row_sum"])
def test_nan_stays_nan_in_its_own_sequence(reduction: Reduction) -> None:
    entropy = np.zeros((2, 3, 2, 4), np.float32)
    entropy[1, 2, 0, 3] = np.nan
    penalty = penalties(jnp.asarray(entropy), jnp.zeros((2, 2)), margin=0.2, reduction=reduction)
    np.testing.assert_array_equal(penalty, [0, 0, np.nan])


def as_released(attention_LBHTS: np.ndarray, theta_LH: np.ndarray, gamma: float) -> float:
    """The loss of the authors' class, restated in float64: sum over rows, / H, / L."""
    num_layers, _, num_heads, length, _ = attention_LBHTS.shape
    total = 0.0
    for layer in range(num_layers):
        of_layer = 0.0
        for head in range(num_heads):
            probs = attention_LBHTS[layer, :, head]
            entropy = -np.nansum(probs * np.log(probs + 1e-9), axis=-1)
            deviation = entropy - theta_LH[layer, head] * math.log(length)
            free = np.abs(deviation) <= gamma * math.log(length)
            of_layer += np.where(free, 0.0, deviation**2).sum()
        total += of_layer / num_heads
    return total / num_layers


def random_attention(num_keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits `[L, B, H, T, S]` with masked keys at float32's minimum, probabilities, thresholds."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2, 3, 2, num_keys, num_keys))
    visible = np.tri(num_keys, dtype=bool)
    weights = np.where(visible, np.exp(logits), 0.0)
    masked = np.where(visible, logits, np.finfo(np.float32).min)
    return masked, weights / weights.sum(-1, keepdims=True), rng.uniform(0.2, 0.8, size=(2, 2))


@jax.jit
def entropy_of(logits_BHTS: jax.Array) -> jax.Array:
    return softmax_and_entropy(logits_BHTS)[1]


def entropies(logits_LBHTS: jax.Array) -> jax.Array:
    return jax.vmap(entropy_of)(logits_LBHTS)


def test_row_sum_is_the_released_code_and_mean_is_algorithm_1(float64: None) -> None:
    logits, probs, theta = random_attention(8)
    entropy = entropies(jnp.asarray(logits))
    released = penalties(entropy, jnp.asarray(theta), margin=0.2, reduction="row_sum")
    assert float(released.sum()) == pytest.approx(as_released(probs, theta, 0.2), rel=1e-6)

    with np.errstate(divide="ignore", invalid="ignore"):
        rows = -np.where(probs > 0, probs * np.log(probs), 0.0).sum(-1)
    delta = rows.mean(-1) - theta[:, None] * math.log(8)  # [L, B, H]
    expected = np.where(np.abs(delta) > 0.2 * math.log(8), delta**2, 0.0).mean((0, 2))
    found = penalties(entropy, jnp.asarray(theta), margin=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (expected > 0).all()


@pytest.mark.parametrize("reduction", ["mean", "row_sum"])
def test_gradients_against_finite_differences(float64: None, reduction: Reduction) -> None:
    logits, _, theta = random_attention(5)

    def loss(logits: jax.Array, theta: jax.Array) -> jax.Array:
        return entropy_penalty(entropies(logits), theta, margin=0.2, reduction=reduction).sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(logits), jnp.asarray(theta))
    value = jax.jit(loss)
    rng = np.random.default_rng(1)
    visible = np.broadcast_to(np.tri(5, dtype=bool), logits.shape)
    np.testing.assert_array_equal(np.asarray(grads[0])[~visible], 0)
    for _ in range(3):
        direction = (np.where(visible, rng.normal(size=logits.shape), 0), rng.normal(size=(2, 2)))
        step = 1e-6
        ahead, behind = (
            value(logits + sign * step * direction[0], theta + sign * step * direction[1])
            for sign in (1, -1)
        )
        expected = float(ahead - behind) / (2 * step)
        found = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
        assert found == pytest.approx(expected, rel=1e-6)


def test_entropy_and_its_gradient_by_hand() -> None:
    value_and_grad = jax.jit(jax.value_and_grad(lambda z: entropy_of(z).sum()))
    masked = float(jnp.finfo(jnp.float32).min)
    for low in (masked, -jnp.inf):
        logits = jnp.array([0.0, math.log(3), low])[None, None, None]

        value, grad = value_and_grad(logits)
        assert float(value) == pytest.approx(0.5623351446, abs=1e-6)
        np.testing.assert_allclose(grad[0, 0, 0], [0.2059898, -0.2059898, 0], atol=1e-6)
        assert float(grad[0, 0, 0, 2]) == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_gradient_is_finite_for_every_causal_row(dtype: Any) -> None:
    logits = jnp.where(jnp.tri(64, dtype=bool), 0.0, jnp.finfo(dtype).min).astype(dtype)

    @jax.jit
    def entropy(z: jax.Array) -> jax.Array:
        return entropy_of(z).astype(jnp.float32).sum()

    value, grad = jax.value_and_grad(entropy)(logits[None, None])
    assert bool(jnp.isfinite(grad).all())
    ceiling = 64 * causal_entropy_ceiling(64)
    assert float(value) == pytest.approx(ceiling, rel=float(jnp.finfo(dtype).eps) + 1e-6)


def test_nan_logits_give_nan() -> None:
    logits = jnp.array([[0.0, jnp.nan], [0.0, 1.0]])[None, None]
    entropy = entropy_of(logits)
    np.testing.assert_array_equal(jnp.isnan(entropy), [[[True, False]]])


@pytest.mark.parametrize(
    ("entropy", "steps", "threshold"), [(3.60, 44, 0.542), (3.85, 98, 0.594), (0.05, 302, 0.2095)]
)
def test_adam_moves_the_threshold_to_a_head_that_stays(
    entropy: float, steps: int, threshold: float
) -> None:
    # At 1e-3, with the default beta2 of nfllm; one head of 144, so a 144th of the published weight.
    optimizer = optax.adam(1e-3, b2=0.95)
    rows = jnp.full((1, 1, 1, 128), entropy)

    def loss(theta: jax.Array) -> jax.Array:
        return 1e-5 / 144 * entropy_penalty(rows, theta, margin=0.2).sum()

    def step(carry: Any, _: None) -> Any:
        theta, state = carry
        value, grad = jax.value_and_grad(loss)(theta)
        updates, state = optimizer.update(grad, state)
        return (optax.apply_updates(theta, updates), state), (value, theta)

    theta = jnp.full((1, 1), 0.5)
    _, (values, thetas) = jax.lax.scan(step, (theta, optimizer.init(theta)), length=400)
    first_free = int(np.argmax(np.asarray(values) == 0))
    assert first_free + 1 == pytest.approx(steps, abs=1)
    assert float(thetas[first_free, 0, 0]) == pytest.approx(threshold, abs=6e-4)


def test_the_threshold_that_no_head_can_exceed() -> None:
    limit = highest_threshold(0.2, 128)
    assert limit == pytest.approx(0.5993, abs=5e-5)
    uniform = jnp.log(jnp.arange(1.0, 129))[None, None, None]
    for threshold, is_penalized in ((limit - 1e-4, True), (limit + 1e-4, False)):
        penalty = penalties(uniform, jnp.full((1, 1), threshold), margin=0.2)
        assert (float(penalty[0]) > 0) == is_penalized
    with pytest.raises(ValueError, match="num_queries=1 must be at least 2"):
        highest_threshold(0.2, 1)


@pytest.mark.parametrize(
    ("shape", "reduction", "message"),
    [
        ((3, 2), "mean", r"threshold_LH: expected \[L, H\] = \(1, 2\).*got \(3, 2\)"),
        ((2,), "mean", r"threshold_LH: expected \[L, H\] = \(1, 2\)"),
        ((1, 2), "sum", "unknown reduction 'sum'; choose from mean, row_sum"),
    ],
)
def test_bad_input(shape: tuple[int, ...], reduction: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropy_penalty(jnp.zeros((1, 1, 2, 4)), jnp.zeros(shape), margin=0.2, reduction=reduction)
