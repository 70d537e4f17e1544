"""The paper's tables: verdicts, and measured numbers beside published ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nfllm.config.removal import model_at_end
from nfllm.experiment import tables
from nfllm.experiment.measured import GroupResults
from nfllm.papers.published import find_published
from nfllm.papers.verdicts import Verdict
from nfllm.report.runs import BASELINE, notation
from nfllm.report.tables import Cell, Column, Table, percent_change
from nfllm.rundir.perplexity import perplexity_change

_BASELINE_VARIANT = "sm+ln+g"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each claim."""
    columns = (
        Column("claim"),
        Column("published"),
        Column("verdict"),
        Column("measured"),
        Column("published size in the interval"),
        Column("p", ".2g"),
        Column("p after Holm", ".2g"),
        Column("through training"),
        Column("what would decide it"),
    )
    rows = tuple(
        (
            verdict.claim,
            verdict.published,
            verdict.judgement,
            verdict.measured,
            verdict.published_inside,
            verdict.p_value,
            verdict.adjusted_p,
            verdict.history,
            verdict.cost,
        )
        for verdict in verdicts
    )
    return Table(columns, rows)


def trajectory_table(verdicts: Sequence[Verdict]) -> Table:
    """One row for each claim and step: the effect and its 95% interval over seeds."""
    columns = (
        Column("claim"),
        Column("step", ",d"),
        Column("effect", "+.4f"),
        Column("95% from", "+.4f"),
        Column("95% to", "+.4f"),
        Column("unit"),
    )
    rows: list[tuple[Cell, ...]] = [
        (verdict.claim, step, *map(float, interval), verdict.unit)
        for verdict in verdicts
        for step, interval in verdict.trajectory
    ]
    return Table(columns, tuple(rows))


def perplexity_table(group: GroupResults) -> Table:
    """Loss and perplexity of each variant over its seeds, beside the published change."""
    columns = (
        Column("variant"),
        *tables.LOSS_COLUMNS,
        Column(f"against {_BASELINE_VARIANT} (%)", "+.1f"),
        Column("published perplexity", ".3f"),
        Column("published change (%)", "+.1f"),
        Column("normalization"),
        Column("runs that did not finish"),
    )
    baseline = group.losses(_BASELINE_VARIANT)
    rows = []
    for variant, runs in group.variants.items():
        losses = group.losses(variant)
        # Equal seeds have the same order of data.
        shared = sorted(losses.keys() & baseline.keys())
        change = None
        if shared and variant != _BASELINE_VARIANT:
            change = perplexity_change(float(np.mean([losses[s] - baseline[s] for s in shared])))
        config = next(iter(runs.values())).entry.config
        published = find_published(config.model, notation(config))
        reference = find_published(config.model, BASELINE)
        perplexity = published and published.perplexity
        rows.append(
            (
                variant,
                *tables.loss_cells(losses.values()),
                change,
                perplexity,
                percent_change(perplexity, reference and reference.perplexity)
                if variant != _BASELINE_VARIANT
                else None,
                model_at_end(config).statistics,
                tables.without_result(runs) or "–",
            )
        )
    return Table(columns, tuple(rows))


def entropy_table(group: GroupResults) -> Table:
    """Head entropies of each variant beside the published overload."""
    columns, rows = tables.entropy_table(group)
    columns += (Column("published early (%)", ".0f"), Column("published all (%)", ".0f"))
    beside = []
    for row in rows:
        config = next(iter(group.variants[str(row[0])].values())).entry.config
        found = find_published(config.model, notation(config))
        beside.append((*row, found and found.early_overload, found and found.overload))
    return Table(columns, tuple(beside))
