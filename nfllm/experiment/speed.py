"""The cost of a step of each variant, and how saturated its point functions are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from nfllm.config.derived import Site
from nfllm.experiment.measured import GroupResults
from nfllm.report.page import Rows, Section
from nfllm.report.tables import Cell, Column, Table


def speed_sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    """Tokens a second by variant, as the runs logged them."""
    blocks = [
        Rows(f"speed_{g.name}", g.title, table) for g in groups if (table := speed_table(g)).rows
    ]
    if blocks:
        yield Section(
            "Cost of a step",
            "Median over the logged speeds of all seeds, and the time of a step relative to the "
            "group's first variant. Runs shared the machine, so differences of a few percent mean "
            "nothing; benchmarks/run.py measures variants alternately.",
            blocks,
        )


def speed_table(group: GroupResults) -> Table:
    """One row for each variant with a logged speed."""
    columns = (Column("variant"), Column("tokens/s", ",.0f"), Column("time of a step", ".2f"))
    found: dict[str, float] = {}
    for variant in group.variants:
        series = group.series(variant, "tokens_per_second").values()
        logged = [float(speed) for by_step in series for speed in by_step.values()]
        speeds = [speed for speed in logged if math.isfinite(speed)]  # the first step has none
        if speeds:
            found[variant] = float(np.median(speeds))
    first = next(iter(found.values()), 1.0)
    return Table(columns, tuple((name, speed, first / speed) for name, speed in found.items()))


def saturation_sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    """The share of saturated entries, for variants with point functions (DyT, Derf)."""
    tables = [(group, saturation_table(group)) for group in groups]
    blocks = [Rows(f"saturation_{g.name}", g.title, table) for g, table in tables if table.rows]
    if blocks:
        yield Section(
            "Saturation of point functions",
            "Share of entries with |alpha x| > 2 at the last probe, in percent, averaged over "
            "layers and seeds. The threshold is a convention.",
            blocks,
        )


def saturation_table(group: GroupResults) -> Table:
    """One row for each variant with a point function."""
    finished = {
        variant: [run for measured in seeds.values() if (run := measured.finished) is not None]
        for variant, seeds in group.variants.items()
    }
    fields = {field for runs in finished.values() for run in runs for field in run.series}
    others = [site for site in get_args(Site) if f"saturation_{site}" in fields]
    sites = dict.fromkeys(["attention", "mlp", "final", *others])
    rows: list[tuple[Cell, ...]] = []
    for variant, runs in finished.items():
        cells: list[Cell] = []
        for site in sites:
            last = [run.last(f"saturation_{site}") for run in runs]
            values = [100 * float(np.mean(value)) for value in last if value is not None]
            cells.append(float(np.mean(values)) if values else None)
        if any(cell is not None for cell in cells):
            rows.append((variant, *cells))
    return Table(
        (Column("variant"), *(Column(f"{site} (%)", ".1f") for site in sites)), tuple(rows)
    )
