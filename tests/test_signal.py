"""Signal through depth: hand-computed cases and float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm import analysis


def test_mean_norm_and_rms() -> None:
    residual = np.array([[[3.0, 4.0], [0.0, 1.0]], [[6.0, 8.0], [0.0, 2.0]]])
    np.testing.assert_allclose(analysis.mean_norm(residual), [3, 6])
    np.testing.assert_allclose(analysis.mean_norm(residual, keep=2), [[5, 1], [10, 2]])
    np.testing.assert_allclose(
        analysis.rms(residual), [math.sqrt(26 / 4), math.sqrt(104 / 4)], rtol=1e-6
    )
    assert float(analysis.rms(residual, keep=0)) == pytest.approx(math.sqrt(130 / 8), rel=1e-6)
    with pytest.raises(ValueError, match=r"keep=4 leading axes: shape \(2, 2, 2\) has 3"):
        analysis.rms(residual, keep=4)


def test_rms_of_many_values_is_accurate() -> None:
    x = np.random.default_rng(0).normal(size=(2, 2**21)).astype(np.float32)
    expected = np.sqrt((x.astype(np.float64) ** 2).mean(1))
    np.testing.assert_allclose(analysis.rms(x), expected, rtol=3e-7)


def test_branch_ratio() -> None:
    residual = np.array([[[3.0, 4.0], [0.0, 2.0]], [[3.0, 5.0], [0.0, 4.0]]])
    ratio = analysis.branch_ratio(residual[1:] - residual[:-1], residual[:-1])
    np.testing.assert_allclose(ratio, [(1 / 5 + 2 / 2) / 2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"branch and skip: .*\(1, 2, 2\) and \(2, 2, 2\)"):
        analysis.branch_ratio(residual[1:], residual)


def test_token_similarity() -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 5)) + 0.5
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = unit @ np.swapaxes(unit, 1, 2)
    pairs = ~np.eye(6, dtype=bool)
    expected = [c[pairs].mean() for c in cosines]
    np.testing.assert_allclose(analysis.token_similarity(x), expected, atol=1e-6)
    assert float(analysis.token_similarity(np.outer([1, 2, 3], [1, 1]))) == pytest.approx(1)
    assert float(analysis.token_similarity(np.eye(4))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"at least two tokens T, got \(1, 5\)"):
        analysis.token_similarity(np.ones((1, 5)))


def test_effective_rank() -> None:
    x = np.stack([np.diag([1.0, 1.0, 1.0]), np.diag([2.0, 0.0, 0.0]), np.diag([1.0, 1.0, 0.0])])
    np.testing.assert_allclose(analysis.effective_rank(x), [3, 1, 2], rtol=1e-5)
    by_hand = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(analysis.effective_rank(np.diag([3.0, 1.0]))) == pytest.approx(by_hand, rel=1e-5)
    assert np.isnan(analysis.effective_rank(np.zeros((2, 2))))


def test_kurtosis() -> None:
    assert float(analysis.kurtosis(np.array([1.0, -1.0, 1.0, -1.0]), keep=0)) == pytest.approx(1)
    one_hot = np.eye(16)[:3]
    expected = (16**2 - 3 * 16 + 3) / 15
    np.testing.assert_allclose(analysis.kurtosis(one_hot), [expected] * 3, rtol=1e-5)
    gaussian = np.random.default_rng(0).normal(size=(1, 50, 4000))
    np.testing.assert_allclose(analysis.kurtosis(gaussian), [3], atol=0.03)


def test_norm_by_layer() -> None:
    tree = {"kernel": np.array([[[3.0, 0.0]], [[0.0, 1.0]]]), "slope": np.array([4.0, 0.0])}
    np.testing.assert_allclose(analysis.norm_by_layer(tree), [5, 1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"one number of layers.*\(3,\)"):
        analysis.norm_by_layer({"a": np.ones((2, 2)), "b": np.ones(3)})
    with pytest.raises(ValueError, match="one number of layers"):
        analysis.norm_by_layer({"a": np.ones(())})


def test_gradients_where_a_norm_or_a_spread_is_zero() -> None:
    """The gradient of a root at 0 counts as 0; elsewhere it is x / |x| / T, or the like."""
    x = jnp.array([[[3.0, 4.0], [0.0, 0.0]]])
    found = jax.grad(lambda x: analysis.mean_norm(x).sum())(x)
    np.testing.assert_allclose(found, [[[0.3, 0.4], [0.0, 0.0]]], rtol=1e-6)
    found = jax.grad(lambda x: analysis.rms(x).sum())(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6 / 2**0.5, 0.8 / 2**0.5], [0.0, 0.0]], rtol=1e-6)
    spread = jax.grad(lambda x: analysis.head_entropy_spread(x).sum())
    np.testing.assert_allclose(spread(jnp.array([[1.0, 3.0], [2.0, 2.0]])), [[-0.5, 0.5], [0, 0]])
    tree = {"a": jnp.array([[3.0, 4.0], [0.0, 0.0]])}
    found = jax.grad(lambda x: analysis.norm_by_layer(x).sum())(tree)["a"]
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    similarity = jax.grad(lambda x: analysis.token_similarity(x).sum())
    assert np.isfinite(similarity(jnp.array([[[3.0, 4.0], [1.0, 2.0]]]))).all()
