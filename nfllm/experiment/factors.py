"""Main effects of a two-level design: how each factor changes the difference of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from nfllm.analysis import overload_share
from nfllm.analysis.intervals import Interval
from nfllm.experiment.measured import GroupResults
from nfllm.report.page import Rows, Section
from nfllm.report.tables import Column, Table

Responses = Mapping[str, Mapping[int, float]]
"""A response by cell and seed."""


def main_effects(
    levels_CF: np.ndarray, responses_CS: Sequence[Sequence[float]], confidence: float = 0.95
) -> list[Interval]:
    r"""How much higher the response is at the high level of each factor than at its low level.

    .. math:: e_f = \bar y_{f+} - \bar y_{f-}, \quad
        \mathrm{se}^2 = \frac{s^2}{C^2} \sum_c \frac{4}{n_c}

    where means are over the cells at a level, s² is the variance between the seeds of a cell,
    pooled over cells, and the interval is Student's t with the degrees of freedom of s².

    Args:
      levels_CF: +1 or -1, by cell and factor; every column has as many of each.
      responses_CS: the response of each cell's seeds, in any unit; numbers of seeds may differ.
      confidence: coverage, between 0 and 1.

    Returns:
      One interval for each factor; NaN bounds if no cell has two seeds.

    Raises:
      ValueError: a column is not balanced, or a cell has no response.

    Example:
      >>> import numpy as np
      >>> main_effects(np.array([[-1], [1]]), [[1.0, 1.2], [2.0, 2.2]])
      [Interval(estimate=1, low=0.391513, high=1.608487)]
    """
    levels_CF = np.asarray(levels_CF)
    if (np.abs(levels_CF) != 1).any() or levels_CF.sum(axis=0).any():
        raise ValueError("each factor needs as many cells at +1 as at -1, and no other levels")
    cells = [np.asarray(seeds, np.float64) for seeds in responses_CS]
    if len(cells) != len(levels_CF) or any(not len(seeds) for seeds in cells):
        raise ValueError(f"expected responses of {len(levels_CF)} cells, at least one of each")
    degrees = sum(len(seeds) - 1 for seeds in cells)
    half = math.nan
    if degrees:
        variance = sum(((seeds - seeds.mean()) ** 2).sum() for seeds in cells) / degrees
        error = math.sqrt(4 * variance * sum(1 / len(seeds) for seeds in cells)) / len(cells)
        half = float(stdtrit(degrees, (1 + confidence) / 2)) * error
    means_C = np.array([seeds.mean() for seeds in cells])
    effects_F = 2 * (levels_CF * means_C[:, None]).mean(axis=0)
    return [Interval(float(e), float(e) - half, float(e) + half) for e in effects_F]


def factor_sections(
    groups: Sequence[GroupResults],
    *,
    design: Mapping[str, Mapping[str, int]],
    factors: Mapping[str, str],
    pair: tuple[str, str],
) -> Iterator[Section]:
    """The main effects on the difference of two models, in loss and in overloaded early heads.

    Args:
      groups: the first one has the runs; its variants are called `CELL-MODEL`.
      design: the level of each factor, +1 or -1, by cell.
      factors: from the name of a factor in `design` to a description of it.
      pair: the two models; differences are the first minus the second.
    """
    group = groups[0]
    rows = [
        Rows(f"effects_{name}", f"On the difference of {title}, {pair[0]} - {pair[1]}", table)
        for name, title, responses in (
            ("loss", "final losses (nats)", _differences(design, pair, group.losses)),
            ("overload", "shares of overloaded early heads", _overload(group, design, pair)),
        )
        if (table := effects_table(design, factors, responses)).rows
    ]
    if rows:
        yield Section(
            "Main effects",
            "A cell is a combination of levels; the effect of a factor is the mean over cells at "
            "its high level minus that over the others. In a design with fewer cells than "
            "combinations, a main effect cannot be separated from some interactions of other "
            "factors. 95% intervals come from the spread between seeds, pooled over the cells.",
            rows,
        )


def effects_table(
    design: Mapping[str, Mapping[str, int]], factors: Mapping[str, str], responses: Responses
) -> Table:
    """The mean response, and the effect of each factor; no rows until every cell has a response."""
    columns = (
        Column("factor"),
        Column("effect", "+.4f"),
        Column("95% from", "+.4f"),
        Column("95% to", "+.4f"),
    )
    if any(not responses.get(cell) for cell in design):
        return Table(columns, ())
    levels_CF = np.array([[levels[name] for name in factors] for levels in design.values()])
    cells = [list(responses[cell].values()) for cell in design]
    rows: list[tuple[str | float | None, ...]] = [
        ("mean of all cells", float(np.mean([np.mean(seeds) for seeds in cells])), None, None)
    ]
    for words, found in zip(factors.values(), main_effects(levels_CF, cells), strict=True):
        rows.append((words, *(x if math.isfinite(x) else None for x in map(float, found))))
    return Table(columns, tuple(rows))


def _differences(
    design: Mapping[str, Mapping[str, int]],
    pair: tuple[str, str],
    read: Callable[[str], Mapping[int, float]],
) -> Responses:
    found = {}
    for cell in design:
        first, second = (read(f"{cell}-{model}") for model in pair)
        found[cell] = {seed: first[seed] - second[seed] for seed in first.keys() & second.keys()}
    return found


def _overload(
    group: GroupResults, design: Mapping[str, Mapping[str, int]], pair: tuple[str, str]
) -> Responses:
    """Share of the heads of the first half of the layers that are overloaded, as a difference."""
    maximum = group.maximum
    if maximum is None:
        return {}

    def share(variant: str) -> dict[int, float]:
        return {
            seed: float(overload_share(entropy_LH[: max(1, len(entropy_LH) // 2)], maximum).mean())
            for seed, entropy_LH in group.entropies(variant).items()
        }

    return _differences(design, pair, share)
