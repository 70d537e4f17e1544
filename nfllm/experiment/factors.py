"""The page of a two-level design: the difference of two models by cell, and what changes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nfllm.analysis import Interval, overload_share
from nfllm.analysis.comparisons import holm, p_value
from nfllm.analysis.factorial import cell_means, main_effects
from nfllm.analysis.heads import early_layers
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.tables import without_result
from nfllm.report.page import Rows, Section
from nfllm.report.tables import Cell, Column, Table
from nfllm.rundir.perplexity import perplexity_change

Design = Mapping[str, Mapping[str, int]]
"""The level of each factor, +1 or -1, by cell."""

Responses = Mapping[str, Mapping[int, float]]
"""A number by cell and seed; a cell whose runs have not finished has no seeds."""


def factor_sections(
    groups: Sequence[GroupResults],
    *,
    design: Design,
    factors: Mapping[str, str],
    pair: tuple[str, str],
) -> Iterator[Section]:
    """What each cell has, and the main effects on two differences between the models of a pair.

    The differences are those of the final losses and of the shares of early heads (of the first
    half of the layers) that are overloaded.

    Args:
      groups: the first one has the runs; its variants are called `CELL-MODEL`.
      design: the level of each factor, +1 or -1, by cell.
      factors: from the name of a factor in `design`, or of the interaction "a x b" of two, to a
        description of its high level.
      pair: the two models; differences are the first minus the second.
    """
    group = groups[0]
    losses = {variant: group.losses(variant) for variant in group.variants}
    shares = {variant: _early_overload(group, variant) for variant in group.variants}
    named = {name: factors[name] for name in next(iter(design.values()))}
    words = "; ".join(f"{name} ({high})" for name, high in named.items())
    yield Section(
        "Cells",
        "The end of each cell's training. A cell is named after its factors at a high level: "
        f"{words}. Intervals are those of the difference of losses, by the spread between seeds "
        "pooled over the cells. M is the largest head entropy of all runs.",
        [Rows("cells", "", cells_table(group, design, pair, losses, shares))],
    )
    responses = {
        "final losses (nats)": _differences(design, pair, losses),
        "shares of overloaded early heads": _differences(design, pair, shares),
    }
    if empty := [cell for cell in design if not all(x[cell] for x in responses.values())]:
        yield Section(
            "Main effects that are not computed",
            "A main effect needs a pair of finished runs in every cell. These cells have none: "
            f"{', '.join(empty)}.",
            [],
        )
    if tables := effects_tables(design, factors, responses):
        yield Section(
            "Main effects",
            "The effect of a factor is the mean over the cells at its high level minus that over "
            "the others; that of an interaction, a x b, over the cells where both are high or both "
            "low. In a design with fewer cells than combinations, an effect cannot be told from "
            "the interactions in its last column: it may be theirs. Intervals and p are those of "
            "Student's t, with the spread between seeds pooled over the cells that have two or "
            "more; shares near 0 or 1 spread less than others. p after Holm is corrected for "
            f"the {len(factors) * len(tables)} effects of this section.",
            [
                Rows(f"effects_{place}", f"On the difference of {title}, {pair[0]} - {pair[1]}", t)
                for place, (title, t) in enumerate(tables.items())
            ],
        )


def cells_table(
    group: GroupResults,
    design: Design,
    pair: tuple[str, str],
    losses: Responses,
    shares: Responses,
) -> Table:
    """The difference of losses in each cell, and the overloaded early heads of both models.

    `losses` and `shares` are by variant and seed.
    """
    first, second = pair
    columns = (
        Column("cell"),
        Column("seeds", "d"),
        Column(f"loss of {first} - {second} (nats)", "+.4f"),
        Column("95% from", "+.4f"),
        Column("95% to", "+.4f"),
        Column(f"perplexity of {first} above {second} (%)", "+.1f"),
        *(Column(f"early heads ≥ 3M/4, {model} (%)", ".0f") for model in pair),
        Column("runs that did not finish"),
    )
    found = _differences(design, pair, losses)
    ended = [cell for cell in design if found[cell]]
    means = dict(zip(ended, cell_means([[*found[c].values()] for c in ended]), strict=True))
    rows = []
    for cell in design:
        variants = [f"{cell}-{model}" for model in pair]
        unfinished = [without_result(group.variants.get(variant, {})) for variant in variants]
        mean = means.get(cell)
        rows.append(
            (
                cell,
                len(found[cell]),
                *_bounded(mean),
                None if mean is None else perplexity_change(float(mean.estimate)),
                *(_percent(shares.get(variant, {})) for variant in variants),
                "; ".join(f"{m}: {u}" for m, u in zip(pair, unfinished, strict=True) if u) or "–",
            )
        )
    return Table(columns, tuple(rows))


def effects_tables(
    design: Design, factors: Mapping[str, str], responses: Mapping[str, Responses]
) -> dict[str, Table]:
    """The mean of each response and the effects of all factors on it, with p-values.

    A response without a number in every cell is left out.
    """
    levels_CF = np.array([[_level(cell, name) for name in factors] for cell in design.values()])
    whole = {
        title: [[*response[cell].values()] for cell in design]
        for title, response in responses.items()
        if all(response.get(cell) for cell in design)
    }
    p_values = [
        _p_value(levels_CF, cells, f) for cells in whole.values() for f in range(len(factors))
    ]
    tested = iter(zip(p_values, holm(p_values), strict=True))
    columns = (
        Column("factor"),
        Column("effect", "+.4f"),
        Column("95% from", "+.4f"),
        Column("95% to", "+.4f"),
        Column("p", ".2g"),
        Column("p after Holm", ".2g"),
        Column("interactions of two factors that are mixed in"),
    )
    mixed = [", ".join(aliases(design, name)) or "–" for name in factors]
    tables = {}
    for title, cells in whole.items():
        mean = float(np.mean([np.mean(seeds) for seeds in cells]))
        rows: list[tuple[Cell, ...]] = [("mean of all cells", mean, *[None] * 4, "–")]
        effects = main_effects(levels_CF, cells)
        for high, effect, others in zip(factors.values(), effects, mixed, strict=True):
            rows.append((high, *_bounded(effect), *map(_known, next(tested)), others))
        tables[title] = Table(columns, tuple(rows))
    return tables


def aliases(design: Design, effect: str) -> list[str]:
    """The interactions of two factors whose levels are those of `effect` in every cell.

    For example ["width x rate", "the opposite of start x steps"]: a design without all
    combinations gives the sum of their effects and that of `effect` (Box & Hunter, 1961).

    Args:
      design: the level of each factor, +1 or -1, by cell.
      effect: a factor, or the interaction "a x b" of two.
    """
    found = []
    for pair in itertools.combinations(next(iter(design.values())), 2):
        name = " x ".join(pair)
        signs = {_level(cell, name) * _level(cell, effect) for cell in design.values()}
        if len(signs) == 1 and {*pair} != {*effect.split(" x ")}:
            found.append(name if signs == {1} else f"the opposite of {name}")
    return found


def _level(cell: Mapping[str, int], name: str) -> int:
    """+1 or -1: of a factor, or of the interaction "a x b" of two."""
    return math.prod(cell[factor] for factor in name.split(" x "))


def _p_value(levels_CF: np.ndarray, cells: Sequence[Sequence[float]], factor: int) -> float:
    """Two-sided p of no effect of the factor."""

    def interval_at(confidence: float) -> Interval:
        return main_effects(levels_CF, cells, confidence=confidence)[factor]

    return p_value(interval_at, 0.0)


def _bounded(found: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if found is None else tuple(_known(float(x)) for x in found)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(shares: Mapping[int, float]) -> float | None:
    return 100 * float(np.mean([*shares.values()])) if shares else None


def _differences(design: Design, pair: tuple[str, str], values: Responses) -> Responses:
    """The first model's value minus the second's, by cell and seed; `values` is by variant."""
    found = {}
    for cell in design:
        first, second = (values.get(f"{cell}-{model}", {}) for model in pair)
        found[cell] = {seed: first[seed] - second[seed] for seed in first if seed in second}
    return found


def _early_overload(group: GroupResults, variant: str) -> dict[int, float]:
    """Share of the heads of the first half of the layers that are overloaded, by seed."""
    maximum = group.maximum
    if maximum is None:
        return {}
    return {
        seed: float(overload_share(entropy_LH[: early_layers(len(entropy_LH))], maximum).mean())
        for seed, entropy_LH in group.entropies(variant).items()
    }
