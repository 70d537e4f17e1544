"""Norms that were removed or frozen: a section on them, and marks in every curve over steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from nfllm.config.derived import Site
from nfllm.report import figures
from nfllm.report.page import Block, Pictures, Rows, Section
from nfllm.report.runs import ReportedRun
from nfllm.report.style import FAINT, literal, shortened
from nfllm.report.tables import Column, Table


def removal_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """When each norm was removed, with the mean entropy before and after."""
    rows = [
        (
            run.label,
            row["step"],
            str(row.get("site", "")),
            row.get("layer"),
            _mean(row.get("entropy_before_nats")),
            _mean(row.get("entropy_after_nats")),
        )
        for run in runs
        for row in run.events("removed")
    ]
    if not rows:
        return
    columns = (
        Column("run"),
        Column("step", ",.0f"),
        Column("norm"),
        Column("layer", ".0f"),
        Column("mean entropy before (nats)", ".4f"),
        Column("after", ".4f"),
    )
    yield Section(
        "Norms that were removed",
        "Mean attention entropy over all heads on the probe batch, of the same weights with the "
        "norm and without it. In curves over steps a dotted line marks the removal of a norm.",
        [Rows("removals", "", Table(columns, tuple(rows)))],
    )


def frozen_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """How much the loss rises when a single norm is frozen, for each norm."""
    blocks: list[Block] = []
    rows: list[tuple[Any, ...]] = []
    curves: list[figures.Curve] = []
    for place, run in enumerate(runs):
        for event in _frozen(run)[-1:]:
            whole = event.get("loss_nats", {})
            each = event.get("each", [])
            rows += [
                (run.label, str(norm["site"]), norm.get("layer"), *_losses(norm, whole))
                for norm in each
            ]
            for site in dict.fromkeys(norm["site"] for norm in each if "layer" in norm):
                own = [norm for norm in each if norm["site"] == site]
                rises = [norm["loss_nats"] - whole.get("layernorm", np.nan) for norm in own]
                layers = np.asarray([norm["layer"] for norm in own])
                label = site if len(runs) == 1 else f"{run.label}: {site}"
                curves.append(figures.Curve(label, layers, np.asarray(rises), place + len(curves)))
    if not rows:
        return
    if curves:
        figure = figures.layer_profiles(curves, "layer", "rise of the loss (nats)")
        blocks.append(Pictures("frozen_norms", "", figure, [figure]))
    columns = (
        Column("run"),
        Column("norm"),
        Column("layer", ".0f"),
        Column("loss with this norm frozen (nats)", ".4f"),
        Column("rise", "+.4f"),
    )
    blocks.append(Rows("frozen_norms_table", "", Table(columns, tuple(rows))))
    yield Section(
        "What each norm is worth",
        "Loss when one norm divides by its mean standard deviation instead of that of its input. "
        "The figure shows only rises above 0.",
        blocks,
    )


def mark_removals(sections: Sequence[Section], runs: Sequence[ReportedRun]) -> list[Section]:
    """The sections; in curves over steps a dotted line marks the removal of a norm of their run.

    A panel of one run has the run's label as title, with a site or without; a panel without a title
    shows all runs.
    """
    steps = {
        title: [row["step"] for row in run.events("removed")]
        for run in runs
        for title in (run.label, *map(run.label_at, get_args(Site)))
    }
    if not any(steps.values()):
        return list(sections)
    return [
        section._replace(
            blocks=[_marked(b, steps) if isinstance(b, Pictures) else b for b in section.blocks]
        )
        for section in sections
    ]


def _marked(pictures: Pictures, steps: Mapping[str, Sequence[int]]) -> Pictures:
    every = sorted({step for own in steps.values() for step in own})
    by_title = {literal(shortened(label, 36)): own for label, own in steps.items()}
    for figure in {id(f): f for f in (pictures.whole, *pictures.panels)}.values():
        for axes in figure.axes:
            if axes.get_xlabel() == "step":
                for step in by_title.get(axes.get_title(loc="left"), every):
                    axes.axvline(step, color=FAINT, linestyle=":", linewidth=0.6, zorder=0.5)
    charts = [c._replace(marks=steps.get(c.title, every)) for c in pictures.charts]
    return pictures._replace(charts=charts)


def _frozen(run: ReportedRun) -> list[dict[str, Any]]:
    return [row for row in run.metrics.rows["event"] if isinstance(row.get("each"), list)]


def _mean(entropy_LH: Any) -> float | None:
    return None if entropy_LH is None else float(np.mean(np.asarray(entropy_LH, np.float64)))


def _losses(norm: dict[str, Any], whole: dict[str, float]) -> tuple[float, float | None]:
    reference = whole.get("layernorm")
    loss = float(norm["loss_nats"])
    return loss, None if reference is None else loss - reference
