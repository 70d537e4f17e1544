"""The section about the entropy regularizer: its penalty, and thresholds beside entropies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from nfllm.report import figures
from nfllm.report.charts import curves_table
from nfllm.report.figures import Curve
from nfllm.report.page import Block, Pictures, Rows, Section
from nfllm.report.runs import ReportedRun
from nfllm.report.tables import Column, Table


def regularizer_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Penalty through training, thresholds and learned temperatures by layer at the last probe."""
    curves = [
        Curve(run.label, *run.series["entropy_penalty"], index)
        for index, run in enumerate(runs)
        if "entropy_penalty" in run.series
    ]
    blocks: list[Block] = []
    if curves:
        figure = figures.curves(curves, "entropy penalty")
        table = curves_table(curves, "entropy penalty")
        blocks.append(Pictures("entropy_penalty", "", figure, [figure], table=table))
    if rows := [row for run in runs for row in _threshold_rows(run)]:
        blocks.append(
            Rows("entropy_thresholds", "At the last probe.", Table(_THRESHOLDS, (*rows,)))
        )
    if rows := [row for run in runs for row in _temperature_rows(run)]:
        blocks.append(Rows("temperatures", "At the last probe.", Table(_TEMPERATURES, (*rows,))))
    if blocks:
        yield Section(
            "Entropy regularizer and temperatures",
            "A head is penalized if its mean entropy is further than the margin from its "
            "threshold; no number is given where single queries are penalized. A learned threshold "
            "moves toward its head's entropy by about the learning rate a step, so a head may "
            "escape the penalty because its threshold came to it. A temperature below 0 reverses "
            "the order of the keys; 0 or less should not occur.",
            blocks,
        )


_THRESHOLDS = (
    Column("run"),
    Column("layer", "d"),
    Column("mean entropy (nats)", ".3f"),
    Column("mean threshold (nats)", ".3f"),
    Column("thresholds as shares of ln T"),
    Column("penalized heads", "d"),
)
_TEMPERATURES = (
    Column("run"),
    Column("layer", "d"),
    Column("least", ".4g"),
    Column("largest", ".4g"),
    Column("0 or less", "d"),
)


def _threshold_rows(run: ReportedRun) -> Iterator[tuple[str | int | float | None, ...]]:
    if run.record is None or "entropy_nats" not in run.series:
        return
    config = run.record.config
    objective = config.objective
    if not objective.entropy_weight:
        return
    maximum = math.log(config.model.context_length)
    entropy_LH = run.last("entropy_nats")
    start_LH = np.full(entropy_LH.shape, objective.entropy_threshold)
    learned_LH = run.last("entropy_threshold")
    threshold_LH = start_LH if learned_LH is None else learned_LH
    distance_LH = np.abs(entropy_LH - threshold_LH * maximum)
    is_penalized_LH = distance_LH > objective.entropy_margin * maximum
    for layer, (entropy_H, threshold_H) in enumerate(zip(entropy_LH, threshold_LH, strict=True)):
        low, high = float(threshold_H.min()), float(threshold_H.max())
        yield (
            run.label,
            layer,
            float(entropy_H.mean()),
            float(threshold_H.mean() * maximum),
            f"{low:.3f} to {high:.3f}",
            int(is_penalized_LH[layer].sum()) if objective.entropy_reduction == "mean" else None,
        )


def _temperature_rows(run: ReportedRun) -> Iterator[tuple[str | int | float, ...]]:
    fields = ("temperature_min", "temperature_max", "temperature_not_positive")
    if any(field not in run.series for field in fields):
        return
    least, largest, wrong = map(run.last, fields)
    for layer in range(len(least)):
        yield (
            run.label,
            layer,
            float(least[layer].min()),
            float(largest[layer].max()),
            int(wrong[layer].sum()),
        )
