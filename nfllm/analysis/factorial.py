"""Two-level factorial designs: means of the cells, and the main effect of each factor."""

import math
from collections.abc import Sequence

import numpy as np

from nfllm.analysis.intervals import Interval, check_confidence, t_quantile


def cell_means(
    responses_CS: Sequence[Sequence[float]], *, confidence: float = 0.95
) -> list[Interval]:
    r"""The mean of each cell, with an interval from the spread of all cells' seeds.

    .. math:: \bar y_c \pm t_\nu \, s / \sqrt{n_c}

    where s² is the variance between the seeds of a cell, pooled over cells, and Student's t has the
    degrees of freedom ν of s², the number of seeds less that of cells.

    Args:
      responses_CS: the response of each cell's seeds, in any unit; numbers of seeds may differ.
      confidence: coverage, between 0 and 1.

    Returns:
      One interval for each cell; NaN bounds if no cell has two seeds, or all seeds agree.

    Raises:
      ValueError: a cell has no response, or a confidence outside (0, 1).

    Example:
      >>> cell_means([[1.0, 1.2], [2.0, 2.2]])[0]
      Interval(estimate=1.1, low=0.6697347, high=1.530265)
    """
    check_confidence(confidence)
    cells = _cells(responses_CS)
    halves = [_half_width(cells, 1 / len(seeds), confidence) for seeds in cells]
    means = [float(seeds.mean()) for seeds in cells]
    return [Interval(m, m - half, m + half) for m, half in zip(means, halves, strict=True)]


def main_effects(
    levels_CF: np.ndarray, responses_CS: Sequence[Sequence[float]], *, confidence: float = 0.95
) -> list[Interval]:
    r"""How much higher the response is at the high level of each factor than at its low level.

    .. math:: e_f = \bar y_{f+} - \bar y_{f-}, \quad
        \mathrm{se}^2 = \frac{s^2}{C^2} \sum_c \frac{4}{n_c}

    where means are over the cells at a level, and s² and Student's t are those of `cell_means`.

    Args:
      levels_CF: +1 or -1, by cell and factor; every column has as many of each.
      responses_CS: the response of each cell's seeds, in any unit; numbers of seeds may differ.
      confidence: coverage, between 0 and 1.

    Returns:
      One interval for each factor; NaN bounds if no cell has two seeds, or all seeds agree.

    Raises:
      ValueError: the levels are not `[C, F]`, a column is not balanced, a cell has no response, or
        a confidence outside (0, 1).

    Example:
      >>> import numpy as np
      >>> main_effects(np.array([[-1], [1]]), [[1.0, 1.2], [2.0, 2.2]])
      [Interval(estimate=1, low=0.391513, high=1.608487)]
    """
    levels_CF = np.asarray(levels_CF)
    check_confidence(confidence)
    if levels_CF.ndim != 2:
        raise ValueError(f"levels: expected [cells, factors], got shape {levels_CF.shape}")
    if (np.abs(levels_CF) != 1).any() or levels_CF.sum(axis=0).any():
        raise ValueError("each factor needs as many cells at +1 as at -1, and no other levels")
    cells = _cells(responses_CS)
    if len(cells) != len(levels_CF):
        raise ValueError(f"expected responses of {len(levels_CF)} cells, got {len(cells)}")
    weight = 4 * sum(1 / len(seeds) for seeds in cells) / len(cells) ** 2
    half = _half_width(cells, weight, confidence)
    means_C = np.array([seeds.mean() for seeds in cells])
    effects_F = (2 * (levels_CF * means_C[:, None]).mean(axis=0)).tolist()
    return [Interval(effect, effect - half, effect + half) for effect in effects_F]


def _cells(responses_CS: Sequence[Sequence[float]]) -> list[np.ndarray]:
    cells = [np.asarray(seeds, np.float64) for seeds in responses_CS]
    if empty := [index for index, seeds in enumerate(cells) if not len(seeds)]:
        raise ValueError(f"cell {empty[0]} has no response; every cell needs at least one")
    return cells


def _half_width(cells: Sequence[np.ndarray], weight: float, confidence: float) -> float:
    """Half of the interval of an estimate whose variance is `weight` times that of one seed.

    Seeds that agree up to rounding, as saturated shares do, do not tell how far seeds spread.
    """
    degrees = sum(len(seeds) - 1 for seeds in cells)
    if not degrees:
        return math.nan
    variance = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in cells) / degrees
    largest = max(float(np.abs(seeds).max()) for seeds in cells)
    if math.sqrt(variance) <= 8 * float(np.spacing(largest)):
        return math.nan
    return t_quantile(degrees, confidence) * math.sqrt(variance * weight)
