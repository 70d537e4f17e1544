"""The section that plots perplexity against what private inference of each model costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from nfllm.config import ConfigError
from nfllm.config.removal import model_at_end
from nfllm.private_cost import DecoderShape, PrivateCost, private_cost
from nfllm.report.page import Pictures, Rows, Section
from nfllm.report.runs import ReportedRun
from nfllm.report.style import (
    PANEL,
    add_legend,
    panel_grid,
    run_style,
    style_axes,
)
from nfllm.report.tables import Column, Table

_MARKERS = "osD^v"


class _Point(NamedTuple):
    label: str
    perplexity: float
    cost: PrivateCost


def cost_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """A figure and a table of all evaluated runs, each at its full context length.

    A run with a part whose cost is not counted is left out, and the text says why.
    """
    points, left_out = [], ""
    for run in runs:
        perplexity = run.last("eval_perplexity")
        if run.record is None or perplexity is None or not np.isfinite(perplexity):
            continue
        model = model_at_end(run.record.config)
        try:
            shape = DecoderShape.from_config(model, run.record.vocab_size)
        except ConfigError as error:
            left_out += f" Without {run.label}: {error}."
            continue
        points.append(_Point(run.label, perplexity, private_cost(shape, model.context_length)))
    if points:
        figure = _scatter(points)
        yield Section(
            "Perplexity against the cost of private inference",
            "Costs are of one forward pass over a whole context. No run is both cheaper and better "
            "than a run on the line. Comparisons on secret values are counted by the protocols of "
            "arXiv 2307.12533, for any network; bytes come from a formula fitted to arXiv "
            f"2501.03489, and are given only for networks of similar shape.{left_out}",
            [
                Pictures("private_cost", "", figure, [figure]),
                Rows("private_cost", "", Table(_COLUMNS, tuple(map(_row, points)))),
            ],
        )
    elif left_out:
        yield Section("Perplexity against the cost of private inference", left_out.strip(), [])


_COLUMNS = (
    Column("run"),
    Column("perplexity", ".3f"),
    Column("comparisons", ",d"),
    Column("products and squares", ",d"),
    Column("reciprocals and inverse roots", ",d"),
    Column("FLOPs", ".3g"),
    Column("fitted GB", ".2f"),
    Column("not counted"),
)


def _row(point: _Point) -> tuple[str | int | float | None, ...]:
    total, num_bytes = point.cost.total, point.cost.communication.total_bytes
    return (
        point.label,
        point.perplexity,
        total.comparisons,
        total.products + total.squares,
        total.reciprocals + total.inverse_roots,
        float(point.cost.flops),
        None if num_bytes is None else num_bytes / 1e9,
        ", ".join(point.cost.without_protocol) or "–",
    )


def pareto(cost_N: np.ndarray, perplexity_N: np.ndarray) -> np.ndarray:
    """Indices of the Pareto front, by cost: no other point is as good in both and better in one.

    Of equal points only the first is returned.
    """
    order = np.lexsort((perplexity_N, cost_N))
    best_so_far = np.minimum.accumulate(perplexity_N[order])
    first = np.concatenate([[True], best_so_far[1:] < best_so_far[:-1]])
    return order[first]


def _scatter(points: Sequence[_Point]) -> Figure:
    cost_N = np.array([float(point.cost.total.comparisons) for point in points])
    perplexity_N = np.array([point.perplexity for point in points])
    figure, (axes,) = panel_grid(PANEL[0], [PANEL[1] * 1.4])
    style_axes(axes, "", "comparisons on secret values", "perplexity")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    front = pareto(cost_N, perplexity_N)
    axes.plot(cost_N[front], perplexity_N[front], color="0.6", linewidth=1, zorder=1)
    dots: list[Line2D] = []
    for place, (x, y) in enumerate(zip(cost_N, perplexity_N, strict=True)):
        dots += axes.plot(x, y, color=run_style(place)["color"], marker=_MARKERS[place % 5], ls="")
    axes.margins(x=0.2, y=0.15)
    add_legend(figure, dots, [point.label for point in points], columns=2)
    return figure
