"""How sure a number is: bootstrap over sequences, Student's t over seeds."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtr, stdtrit

from nfllm.analysis.arrays import Arrays, as_float32
from nfllm.analysis.shown import shown_in_a_line


@shown_in_a_line
class Interval(NamedTuple):
    """An estimate and the confidence interval around it."""

    estimate: jax.Array | float
    low: jax.Array | float
    high: jax.Array | float


def bootstrap_interval(
    values: Arrays,
    *,
    key: jax.Array,
    statistic: Callable[[jax.Array], jax.Array] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval over the first axis (Efron & Tibshirani, 1993, chapter 13).

    Resample independent things: sequences, not tokens or queries, which depend on each other.
    Percentile intervals of few sequences are too narrow, so the percentiles are moved outwards to
    Φ(-sqrt(n / (n - 1)) t), t the quantile of Student's t with n - 1 degrees (Hesterberg, The
    American Statistician 69, 2015, section 4.3). No bound can leave the range of the sequences,
    which contains the median of their distribution with probability 1 - 2^(1-n) only: where that is
    less than the confidence, below 6 sequences for 95%, the bounds are NaN. `seed_interval` gives
    bounds for as few as two numbers, which it assumes to be normally distributed.

    Args:
      values: `[N, ...]`, one entry a sequence, in any unit.
      key: A key of `jax.random`; the same key gives the same interval.
      statistic: Maps `[N, ...]` to any shape; the mean over sequences by default.
      num_resamples: Number of resamples.
      confidence: Coverage, between 0 and 1.

    Returns:
      Estimate and bounds, float32, each of the shape of the statistic and in the units of `values`;
      bounds are NaN with too few sequences for the confidence.

    Raises:
      ValueError: Fewer than two sequences, or a confidence outside (0, 1).

    Example:
      >>> entropy_NLH = np.linspace(2.0, 3.0, 32)[:, None, None]  # 32 sequences, one head
      >>> interval = bootstrap_interval(entropy_NLH, key=jax.random.key(0), num_resamples=200)
      >>> bool(interval.low[0, 0] < interval.estimate[0, 0] < interval.high[0, 0])
      True
    """
    values = as_float32(values)
    check_confidence(confidence)
    if values.ndim == 0 or values.shape[0] < 2:
        raise ValueError(
            f"values: expected [N, ...] with at least two sequences, got {values.shape}"
        )
    measure = (lambda x: jnp.mean(x, axis=0)) if statistic is None else statistic
    num = values.shape[0]

    def resample(key: jax.Array) -> jax.Array:
        return measure(values[jax.random.randint(key, (num,), 0, num)])

    resampled = jax.lax.map(resample, jax.random.split(key, num_resamples))
    t = t_quantile(num - 1, confidence)
    tail = 50 * math.erfc(t * math.sqrt(num / (num - 1) / 2))
    low, high = jnp.percentile(resampled, jnp.array([tail, 100 - tail]), axis=0)
    if 1 - 2.0 ** (1 - num) < confidence:
        low, high = jnp.full_like(low, jnp.nan), jnp.full_like(high, jnp.nan)
    return Interval(measure(values), low, high)


def t_quantile(degrees: float, confidence: float) -> float:
    """Half of Student's t interval of this coverage, in standard errors."""
    return float(stdtrit(degrees, (1 + confidence) / 2))


def seed_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    r"""Mean over seeds with Student's t interval.

    .. math:: \bar x \pm t_{n-1} \frac{s}{\sqrt n}

    With one seed there is no spread to judge by, and the bounds are NaN.

    Args:
      values: One number a seed, n in all.
      confidence: Coverage, between 0 and 1.

    Returns:
      Mean and bounds, in the units of `values`.

    Raises:
      ValueError: No seed, or a confidence outside (0, 1).

    Example:
      >>> [round(x, 3) for x in seed_interval([4.021, 4.051, 4.021])]
      [4.031, 3.988, 4.074]
    """
    x = _seeds("values", values)
    check_confidence(confidence)
    half = math.nan
    if len(x) > 1:
        half = t_quantile(len(x) - 1, confidence) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


class SeedComparison(NamedTuple):
    """Difference of means `a - b` over seeds."""

    difference: float
    low: float
    high: float
    p_value: float | None
    """Two-sided; None with fewer than three seeds."""
    degrees_of_freedom: float
    num_seeds: tuple[int, int]


def compare_seeds(
    a: Sequence[float], b: Sequence[float], *, paired: bool = False, confidence: float = 0.95
) -> SeedComparison:
    """Compares two variants, each trained with several seeds.

    Welch's t test, or with `paired=True` the paired one, where `a[i]` and `b[i]` share seed and
    data order. With fewer than three seeds of either there is no p-value; with fewer than two the
    bounds are NaN.

    Args:
      a: One number (a loss, say) for each seed of the first variant.
      b: The same of the second.
      paired: Whether the seeds correspond.
      confidence: Coverage of the interval.

    Returns:
      The difference with its interval, in the units of the numbers.

    Raises:
      ValueError: No seed; a confidence outside (0, 1); or paired seeds of different number.

    Example:
      >>> found = compare_seeds([4.02, 4.05, 4.02], [4.12, 4.13, 4.11])
      >>> round(found.difference, 3), round(found.p_value, 3)
      (-0.09, 0.003)
    """
    x, y = _seeds("a", a), _seeds("b", b)
    check_confidence(confidence)
    sizes, samples = (len(x), len(y)), [x, y]
    difference = float(x.mean() - y.mean())
    if paired:
        if sizes[0] != sizes[1]:
            raise ValueError(f"paired seeds: expected equally many, got {sizes[0]} and {sizes[1]}")
        samples = [x - y]
    if min(sizes) < 2:
        return SeedComparison(difference, math.nan, math.nan, None, math.nan, sizes)
    variances = [float(v.var(ddof=1)) / len(v) for v in samples]
    error = math.sqrt(sum(variances))
    if error == 0:
        degrees = float(min(sizes) - 1)
    else:
        # Welch-Satterthwaite; with one variance, that of the pairs, it is n - 1.
        degrees = sum(variances) ** 2 / sum(
            v**2 / (n - 1) for v, n in zip(variances, sizes, strict=False)
        )
    half = t_quantile(degrees, confidence) * error
    p_value = None
    if min(sizes) >= 3:
        p_value = (
            float(2 * stdtr(degrees, -abs(difference) / error)) if error else float(difference == 0)
        )
    return SeedComparison(difference, difference - half, difference + half, p_value, degrees, sizes)


def _seeds(name: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: expected one number a seed, at least one, got shape {x.shape}")
    return x


def check_confidence(confidence: float) -> None:
    """Raises ValueError unless a coverage lies between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
