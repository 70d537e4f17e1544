"""From intervals to decisions: ratios of means, p-values by inversion, multiple comparisons."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from nfllm.analysis.intervals import Interval, check_confidence, t_quantile

_SMALLEST_P = 1e-9


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95
) -> Interval:
    """Ratio of two means over the same seeds, with Fieller's interval (JRSS B 16, 1954).

    The interval holds every ratio r for which the mean of a[i] - r b[i] does not differ from zero
    by Student's t test, the solutions of (ā - r b̄)² <= t² (s_aa - 2 r s_ab + r² s_bb) / n. Where
    the mean of the denominators does not differ from zero, these ratios reach to infinity on both
    sides, in some cases with a gap: the bounds are then infinite, and the gap is not reported.

    Args:
      numerators: a, one a seed.
      denominators: b, of the same seeds.
      confidence: coverage, between 0 and 1.

    Returns:
      ā / b̄ and its bounds; NaN bounds for one seed.

    Raises:
      ValueError: no seed, not equally many, or a confidence outside (0, 1).

    Example:
      >>> ratio_interval([1.0, 1.1, 0.9], [2.0, 2.1, 1.9])
      Interval(estimate=0.5, low=0.4291, high=0.5552)
    """
    check_confidence(confidence)
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"expected as many numerators as denominators, got {a.shape}, {b.shape}")
    mean_a, mean_b = float(a.mean()), float(b.mean())
    ratio = mean_a / mean_b if mean_b else math.nan
    if len(a) < 2:
        return Interval(ratio, math.nan, math.nan)
    (aa, ab), (_, bb) = (np.cov(a, b, ddof=1) / len(a)).tolist()
    t2 = t_quantile(len(a) - 1, confidence) ** 2
    square = mean_b**2 - t2 * bb
    if square <= 0:
        return Interval(ratio, -math.inf, math.inf)
    linear = mean_a * mean_b - t2 * ab
    root = math.sqrt(max(0.0, linear**2 - square * (mean_a**2 - t2 * aa)))
    return Interval(ratio, (linear - root) / square, (linear + root) / square)


def p_value(interval_at: Callable[[float], Interval], null: float) -> float:
    """Two-sided p of `null`: one minus the largest confidence whose interval leaves it out.

    Args:
      interval_at: the interval at a confidence between 0 and 1, wider the larger that is.
      null: the value to be rejected.

    Returns:
      p, not below 1e-9; NaN where the interval has no bounds, or for a `null` of NaN.

    Example:
      >>> from nfllm.analysis import seed_interval
      >>> differences = [0.08, 0.11, 0.09]  # of the loss, one for each seed
      >>> p_value(lambda c: seed_interval(differences, confidence=c), null=0.0)
      0.0088
    """
    if math.isnan(null) or any(math.isnan(bound) for bound in interval_at(0.95)):
        return math.nan

    def leaves_out(p: float) -> bool:
        _, low, high = interval_at(1 - p)
        return not low <= null <= high

    low, high = math.log(_SMALLEST_P), math.log(1 - 1e-9)
    if leaves_out(math.exp(low)):
        return _SMALLEST_P
    if not leaves_out(math.exp(high)):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if leaves_out(math.exp(middle)) else (middle, high)
    return math.exp(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979), in the order given.

    Of m hypotheses sorted by p, the i-th has max over j <= i of min(1, (m - j + 1) p_j). If those
    of at most 0.05 are rejected, the probability of any wrong rejection is at most 0.05, however
    the hypotheses depend on each other. NaN (p is unknown) counts in m and stays NaN.

    Example:
      >>> holm([0.01, 0.04, 0.03])
      [0.03, 0.06, 0.06]
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[index] = highest
    return adjusted
