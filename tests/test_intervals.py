"""Intervals: tabulated quantiles, coverage, and comparisons over seeds by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm import analysis


def test_interval_over_seeds_by_hand() -> None:
    interval = analysis.seed_interval([3.9, 4.0, 4.1])
    half = 4.3026527 * 0.1 / math.sqrt(3)
    assert interval == pytest.approx((4.0, 4.0 - half, 4.0 + half), abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    interval = analysis.seed_interval([3.9])
    assert interval.estimate == 3.9
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    with pytest.raises(ValueError, match="one number a seed, at least one"):
        analysis.seed_interval([])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        analysis.seed_interval([1, 2], confidence=95)


def test_welch_by_hand() -> None:
    """Variances 1 and 4 over 3 and 4 seeds: 16/9 over 1/18 + 1/3 is 4.571 degrees."""
    a, b = [1.0, 2.0, 3.0], [5.0 - math.sqrt(6), 5.0, 5.0, 5.0 + math.sqrt(6)]
    comparison = analysis.compare_seeds(a, b)
    degrees = (1 / 3 + 1) ** 2 / ((1 / 3) ** 2 / 2 + 1 / 3)
    error = math.sqrt(1 / 3 + 1)
    assert comparison.difference == pytest.approx(-3)
    assert comparison.degrees_of_freedom == pytest.approx(degrees)
    # The density at 4.571 degrees, integrated numerically.
    half = 2.6447861 * error
    assert (comparison.low, comparison.high) == pytest.approx((-3 - half, -3 + half))
    assert comparison.p_value == pytest.approx(0.05273992)
    assert comparison.num_seeds == (3, 4)


def test_paired_seeds_by_hand() -> None:
    comparison = analysis.compare_seeds([4.1, 4.3, 4.2], [4.0, 4.1, 4.1], paired=True)
    error = math.sqrt(1 / 300) / math.sqrt(3)
    half = 4.3026527 * error
    assert comparison.difference == pytest.approx(0.4 / 3)
    assert comparison.degrees_of_freedom == pytest.approx(2)
    assert comparison.low == pytest.approx(0.4 / 3 - half)
    t = 0.4 / 3 / error
    assert comparison.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t))
    with pytest.raises(ValueError, match="equally many, got 2 and 3"):
        analysis.compare_seeds([1, 2], [1, 2, 3], paired=True)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [3.0, 4.0, 6.0]), ([1.0, 2.0], [3.0, 5.0])])
def test_no_p_value_under_three_seeds(a: list[float], b: list[float]) -> None:
    comparison = analysis.compare_seeds(a, b)
    assert comparison.p_value is None
    assert comparison.low < comparison.difference < comparison.high


def test_no_interval_with_one_seed() -> None:
    comparison = analysis.compare_seeds([1.0], [3.0, 4.0, 5.0])
    assert comparison.difference == -3
    assert comparison.p_value is None
    assert math.isnan(comparison.low)


@pytest.mark.parametrize(("other", "p_value"), [(1.0, 1.0), (2.0, 0.0)])
def test_seeds_without_any_spread(other: float, p_value: float) -> None:
    comparison = analysis.compare_seeds([1.0] * 3, [other] * 3)
    assert comparison.p_value == p_value
    assert comparison.low == comparison.high == 1 - other


def test_bootstrap_of_a_mean_is_about_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    interval = analysis.bootstrap_interval(values, key=jax.random.key(0))
    np.testing.assert_allclose(interval.estimate, values.mean(0), atol=1e-6)
    expected = 1.96 * values.std(0) / 20
    np.testing.assert_allclose(interval.high - interval.estimate, expected, rtol=0.1)
    np.testing.assert_allclose(interval.estimate - interval.low, expected, rtol=0.1)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).exponential(size=(50, 400)).astype(np.float32)
    interval = analysis.bootstrap_interval(values, key=jax.random.key(1), confidence=0.8)
    covered = np.mean((interval.low <= 1) & (interval.high >= 1))
    assert 0.7 < covered < 0.86


@pytest.mark.parametrize("number", [6, 8, 12, 20])
def test_bootstrap_of_few_sequences_covers_as_often_as_it_says(number: int) -> None:
    """Plain percentiles cover the mean of 6 normal numbers in 86% of cases, of 12 in 91%."""
    values = np.random.default_rng(1).normal(size=(number, 4000)).astype(np.float32)
    interval = analysis.bootstrap_interval(values, key=jax.random.key(2), num_resamples=1000)
    covered = np.mean((interval.low <= 0) & (interval.high >= 0))
    assert 0.925 < covered < 0.97


@pytest.mark.parametrize(("confidence", "fewest"), [(0.95, 6), (0.99, 8), (0.7, 3)])
def test_too_few_sequences_have_no_bootstrap_interval(confidence: float, fewest: int) -> None:
    """The mean of 3 lies in their range in 75% of cases, whatever is resampled."""
    for number in (fewest - 1, fewest):
        interval = analysis.bootstrap_interval(
            np.arange(float(number)), key=jax.random.key(0), confidence=confidence
        )
        assert interval.estimate == pytest.approx((number - 1) / 2)
        is_nan = number < fewest
        assert (np.isnan(interval.low), np.isnan(interval.high)) == (is_nan, is_nan)


def test_bootstrap_is_a_function_of_its_key() -> None:
    values = np.arange(20.0)
    first, again = (
        analysis.bootstrap_interval(values, key=jax.random.key(3), num_resamples=100)
        for _ in range(2)
    )
    other = analysis.bootstrap_interval(values, key=jax.random.key(4), num_resamples=100)
    assert first == again
    assert first != other


def test_bootstrap_of_another_statistic() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    interval = analysis.bootstrap_interval(
        values, key=jax.random.key(0), statistic=lambda x: jnp.max(x), num_resamples=200
    )
    assert interval.estimate == values.max()
    assert interval.high == values.max()
    assert interval.low < values.max()


def test_bootstrap_wants_sequences() -> None:
    with pytest.raises(ValueError, match=r"at least two sequences, got \(1, 3\)"):
        analysis.bootstrap_interval(np.ones((1, 3)), key=jax.random.key(0))
