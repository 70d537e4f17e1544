"""The least entropy: hand values, the logits that attain it, and that none goes below."""

import jax
import numpy as np
import pytest

from nfllm import analysis


def entropy_of(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1)
    return np.log(total) - (weights * shifted).sum(axis=-1) / total


def test_hand_values() -> None:
    floor = analysis.entropy_floor([0.0, 1.0], 4)
    np.testing.assert_allclose(floor, [np.log(4), 1.2266594701], rtol=1e-6)
    assert float(analysis.entropy_floor(10.0, 128)) == pytest.approx(0.0608756186, rel=1e-5)
    assert float(analysis.entropy_floor(0.0, 128)) == pytest.approx(np.log(128), rel=1e-6)


@pytest.mark.parametrize("num_keys", [2, 3, 16, 500])
@pytest.mark.parametrize("norm", [1e-3, 0.3, 2.0, 8.0, 30.0])
def test_one_high_logit_attains_it_and_no_other_logits_go_below(norm: float, num_keys: int) -> None:
    floor = float(analysis.entropy_floor(norm, num_keys))
    high = np.zeros(num_keys)
    high[0] = norm * np.sqrt(num_keys / (num_keys - 1))
    assert np.linalg.norm(high - high.mean()) == pytest.approx(norm)
    assert floor == pytest.approx(entropy_of(high), rel=1e-5, abs=1e-7)

    rng = np.random.default_rng(0)
    # Gaussian, heavy-tailed, and k logits of one height.
    heights = np.tri(num_keys)[: num_keys - 1]
    rows = np.concatenate(
        [rng.normal(size=(300, num_keys)), rng.standard_t(1, size=(300, num_keys)), heights]
    )
    rows -= rows.mean(axis=-1, keepdims=True)
    rows *= norm / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert entropy_of(rows).min() >= floor * (1 - 1e-5) - 1e-7


def test_each_query_has_its_own_number_of_keys() -> None:
    norms = np.full((2, 3), 2.0)
    floor = analysis.entropy_floor(norms, analysis.visible_keys(3))
    assert floor.shape == (2, 3)
    expected = [0.0, *(float(analysis.entropy_floor(2.0, n)) for n in (2, 3))]
    np.testing.assert_allclose(floor, [expected, expected], rtol=1e-6)


def test_what_is_not_finite() -> None:
    floor = analysis.entropy_floor([np.inf, np.nan, 3e38], [[4], [1]])
    np.testing.assert_array_equal(floor, [[0, np.nan, 0], [0, np.nan, 0]])


def test_its_gradient_is_finite_and_that_of_float64() -> None:
    slope = jax.jit(jax.grad(lambda s: analysis.entropy_floor(s, 16)))

    def in_float64(norm: float) -> float:
        return float(entropy_of(norm * np.sqrt(16 / 15) * np.eye(16)[0]))

    expected = (in_float64(2 + 1e-5) - in_float64(2 - 1e-5)) / 2e-5
    assert float(slope(2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(slope(0.0)) == pytest.approx(0, abs=1e-6)
    assert float(slope(1e4)) == 0


@pytest.mark.parametrize(
    ("norm", "num_keys", "message"),
    [
        ([1.0, -2.0], 4, r"norm must not be negative, got -2\.0"),
        (1.0, 0, "num_keys must be at least 1, got 0"),
    ],
)
def test_bad_input(norm: object, num_keys: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.entropy_floor(norm, num_keys)
