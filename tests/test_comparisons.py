"""Intervals of shares and ratios by simulation, p-values and Holm's correction by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nfllm.analysis import compare_seeds
from nfllm.analysis.clustered_shares import share_difference_interval, share_interval
from nfllm.analysis.comparisons import holm, p_value, ratio_interval
from nfllm.analysis.intervals import Interval, seed_interval

LAYERS, HEADS, TRIALS = 4, 4, 1200


def draw_shares(
    rng: np.random.Generator, share: float, seeds: int, by_layer: float, by_seed: float
) -> np.ndarray:
    """Shares `[TRIALS, seeds, LAYERS]`: heads agree within a layer, and layers within a seed.

    `by_layer` and `by_seed` are the correlations; a beta distribution has share (1 - share) times
    its correlation as variance.
    """
    means = np.full((TRIALS, seeds, 1), share)
    if by_seed:
        size = 1 / by_seed - 1
        means = rng.beta(share * size, (1 - share) * size, means.shape)
    means = np.repeat(means, LAYERS, axis=2)
    if by_layer == 1:
        return (rng.random(means.shape) < means).astype(float)
    if by_layer:
        size = 1 / by_layer - 1
        means = rng.beta(np.maximum(means * size, 1e-6), np.maximum((1 - means) * size, 1e-6))
    return rng.binomial(HEADS, means) / HEADS


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.85, 0.95])
@pytest.mark.parametrize(("by_layer", "by_seed"), [(0, 0), (0.3, 0), (1, 0), (0.3, 0.1)])
def test_shares_are_covered_and_stay_shares(
    seeds: int, share: float, by_layer: float, by_seed: float
) -> None:
    rng = np.random.default_rng(3)
    draws = draw_shares(rng, share, seeds, by_layer, by_seed)
    found = np.array([share_interval(draw) for draw in draws])
    assert np.mean((found[:, 1] <= share) & (share <= found[:, 2])) >= 0.93
    assert found[:, 1].min() >= 0
    assert found[:, 2].max() <= 1
    assert np.all(found[:, 2] - found[:, 1] > 0.05)


def test_coverage_where_layers_differ() -> None:
    """Enumerated: 3 seeds of 4 layers whose heads always agree; the docstring has the two worst."""
    outcomes = np.array(list(itertools.product((0.0, 1.0), repeat=12))).reshape(-1, 3, 4)
    bounds = np.array([share_interval(shares_NL)[1:] for shares_NL in outcomes])

    def coverage(*share_L: float) -> float:
        likely = np.where(outcomes == 1, share_L, 1 - np.array(share_L)).prod(axis=(1, 2))
        mean = np.mean(share_L)
        return likely[(bounds[:, 0] <= mean + 1e-12) & (bounds[:, 1] >= mean - 1e-12)].sum()

    assert coverage(1, 1, 1, 0.95) == pytest.approx(0.857, abs=0.001)
    assert coverage(0.98, 0.98, 0.98, 1) == pytest.approx(0.834, abs=0.001)
    assert coverage(1, 0.9, 0.5, 0.1) > 0.94
    assert coverage(1, 1, 0.75, 0.5) > 0.94


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("a", "b"), [(0.9, 0.5), (0.75, 0.75), (0.95, 0.9)])
def test_differences_of_shares_are_covered(seeds: int, a: float, b: float) -> None:
    rng = np.random.default_rng(4)
    pairs = zip(*(draw_shares(rng, p, seeds, 0.3, 0.05) for p in (a, b)), strict=True)
    found = np.array([share_difference_interval(*pair) for pair in pairs])
    assert np.mean((found[:, 1] <= a - b) & (a - b <= found[:, 2])) >= 0.93
    assert np.all((found[:, 1] >= -1) & (found[:, 2] <= 1))


def test_layers_without_spread_are_wilsons_interval() -> None:
    """8 of 8 successes: Wilson's lower bound is n / (n + z²)."""
    z = stats.norm.ppf(0.975)
    interval = share_interval(np.ones((2, 4)))
    assert interval == pytest.approx((1, 8 / (8 + z * z), 1))
    half = share_interval([[1, 0, 1, 0], [0, 1, 0, 1]])
    expected = stats.binomtest(4, 8).proportion_ci(method="wilson")
    assert half[1:] == pytest.approx((expected.low, expected.high))


def test_layers_that_differ_are_no_uncertainty() -> None:
    """Of 5 seeds, one layer in four has no overloaded head: q is 11/12 three times, and 1/12."""
    z = stats.norm.ppf(0.975)
    p, q = 0.75, (3 * 11 / 12 + 1 / 12) / 4
    trials = q * (1 - q) / (11 / 144 * 4 / (5 * 16))
    half = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    estimate, low, high = share_interval([[1, 1, 1, 0]] * 5)
    assert (estimate, low, high) == pytest.approx((0.75, middle - half, middle + half))
    assert high - low < 0.25  # of 20 trials that had no layers it would be 0.36


def test_two_seeds_of_11_points_have_a_width() -> None:
    a, b = np.array([[1, 1, 0.75, 0.75]] * 2), np.array([[0.75, 1, 0.75, 0.5625]] * 2)
    estimate, low, high = share_difference_interval(a, b)
    assert estimate == pytest.approx(0.109375)
    assert low < 0 < estimate < high


def test_one_seed_has_no_bounds() -> None:
    assert math.isnan(share_interval([[1, 0.5]]).low)
    assert math.isnan(share_difference_interval([[1, 0.5]], [[0, 0]]).high)
    assert math.isnan(ratio_interval([1.0], [2.0]).low)
    assert math.isnan(p_value(lambda c: seed_interval([0.1], confidence=c), 0.0))


@pytest.mark.parametrize("wrong", [[0.5], [[]], [[1.1]], [[math.nan]]])
def test_what_is_no_table_of_shares(wrong: list) -> None:
    with pytest.raises(ValueError, match="shares: expected"):
        share_interval(wrong)


@pytest.mark.parametrize("seeds", [3, 5])
def test_ratios_are_covered(seeds: int) -> None:
    """Of normal numbers of any correlation, Fieller's interval is exact."""
    rng = np.random.default_rng(5)
    common = rng.normal(size=(4000, seeds))
    b = 0.15 + 0.03 * rng.normal(size=common.shape) + 0.01 * common
    a = 0.09 + 0.02 * common
    found = np.array([ratio_interval(*pair) for pair in zip(a, b, strict=True)])
    covered = np.mean((found[:, 1] <= 0.6) & (found[:, 2] >= 0.6))
    assert covered == pytest.approx(0.95, abs=0.012)


def test_a_ratio_to_nothing_is_unbounded() -> None:
    assert ratio_interval([0.1, 0.2, 0.1], [0.1, -0.1, 0.02])[1:] == (-math.inf, math.inf)
    # Denominators without spread: the interval of the numerators, divided.
    low, high = seed_interval([0.1, 0.2, 0.15])[1:]
    assert ratio_interval([0.1, 0.2, 0.15], [0.5] * 3)[1:] == pytest.approx((low / 0.5, high / 0.5))


def test_a_confidence_is_a_fraction() -> None:
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        ratio_interval([1.0, 1.1], [2.0, 2.1], confidence=95)


def test_p_by_inversion_is_that_of_the_test() -> None:
    x = [0.09, 0.12, 0.11, 0.02]
    inverted = p_value(lambda c: seed_interval(x, confidence=c), 0.02)
    assert inverted == pytest.approx(stats.ttest_1samp(x, 0.02).pvalue, rel=1e-6)
    assert compare_seeds(x, [0.02] * 4, paired=True).p_value == pytest.approx(inverted, rel=1e-6)
    assert p_value(lambda c: Interval(1.0, 0.9, 1.1), 0.0) == pytest.approx(1e-9)
    assert p_value(lambda c: Interval(0.0, -1.0, 1.0), 0.0) == 1.0


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 is not less than the one before; 0.5 stays."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.03, math.nan])[0] == pytest.approx(0.06)
    assert math.isnan(holm([0.03, math.nan])[1])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_a_null_of_nan_has_no_p() -> None:
    assert math.isnan(p_value(lambda c: seed_interval([1.0, 2.0, 3.0], confidence=c), math.nan))
