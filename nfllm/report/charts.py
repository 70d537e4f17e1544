"""The numbers of curves: for the page's script, which draws zoomable charts, and as CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from nfllm.report.figures import Curve, LayerCurves, binned
from nfllm.report.style import FAINT, depth_colors, run_style
from nfllm.report.tables import Column, Table

_MOST_POINTS = 20_000  # of a chart, all lines together: about 200 kB
_FEWEST_POINTS = 160  # of a line, however many there are


class Line(NamedTuple):
    """One line of a chart: `y` `[N]` over steps `x` `[N]`; `low` and `high` bound its seeds."""

    label: str
    color: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashes: str = "-"


class Chart(NamedTuple):
    """What the page's script draws in place of a static figure of curves over steps.

    `title` is the run's label where each run has a panel; `limits` is the initial vertical range;
    `is_by_layer` is whether the lines are layers, coloured by depth; `marks` are the steps of
    dotted lines.
    """

    title: str
    ylabel: str
    log: bool
    limits: tuple[float, float]
    lines: Sequence[Line]
    is_by_layer: bool = False
    marks: Sequence[int] = ()

    def json(self) -> str:
        """The chart as JSON that is safe inside a `<script>`; values not finite become null."""
        most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, len(self.lines)))
        content = {
            "title": self.title,
            "ylabel": self.ylabel,
            "log": self.log,
            "limits": self.limits,
            "byLayer": self.is_by_layer,
            "marks": list(self.marks),
            "lines": [_line(line, most) for line in self.lines],
        }
        return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def curves_chart(series: Sequence[Curve], axes: Axes) -> Chart:
    """The chart of `figures.curves(series, ...)`, which drew the series into `axes`."""
    lines = []
    for label, x_N, y_N, place, low_N, high_N in series:
        style = run_style(place)
        lines.append(Line(label, style["color"], x_N, y_N, low_N, high_N, style["linestyle"]))
    return _chart("", axes, lines)


def layers_chart(panel: LayerCurves, axes: Axes) -> Chart:
    """The chart of one panel of `figures.layer_curves`, which drew it into `axes`."""
    layers = panel.y.shape[1]
    shades = [to_hex(c) for c in depth_colors(layers)]
    lines = [
        Line(f"layer {layer}", shades[layer], panel.x, panel.y[:, layer]) for layer in range(layers)
    ]
    if panel.reference is not None:
        label, x_N, y_N = panel.reference[:3]
        lines.append(Line(label, FAINT, x_N, y_N, dashes="--"))
    return _chart(panel.label, axes, lines, is_by_layer=True)


def curves_table(series: Sequence[Curve], ylabel: str) -> Table:
    """A row for each run and step, with the range over seeds where there is one."""
    has_range = any(curve.low is not None for curve in series)
    columns = [Column("run"), Column("step", ",d"), Column(ylabel, ".4f")]
    if has_range:
        columns += [Column("lowest seed", ".4f"), Column("highest seed", ".4f")]
    rows: list[tuple[Any, ...]] = []
    for label, x_N, *values, low_N, high_N in ((c.label, c.x, c.y, c.low, c.high) for c in series):
        found = [*values, *((low_N, high_N) if has_range else ())]
        filled = [np.full(len(x_N), None) if value is None else value.tolist() for value in found]
        rows += zip([label] * len(x_N), x_N.tolist(), *filled, strict=True)
    return Table(tuple(columns), tuple(rows))


def layers_table(panels: Sequence[LayerCurves], ylabel: str) -> Table:
    """A row for each run, step and layer."""
    columns = Column("run"), Column("step", ",d"), Column("layer", "d"), Column(ylabel, ".4f")
    rows = [
        (panel.label, int(step), layer, float(value))
        for panel in panels
        for step, value_L in zip(panel.x, panel.y, strict=True)
        for layer, value in enumerate(value_L)
    ]
    return Table(columns, tuple(rows))


def profiles_table(series: Sequence[Curve], ylabel: str) -> Table:
    """A row for each run and layer, of curves over depth."""
    columns = Column("run"), Column("layer", "d"), Column(ylabel, ".4f")
    rows = [
        (curve.label, int(layer), float(value))
        for curve in series
        for layer, value in zip(curve.x, curve.y, strict=True)
    ]
    return Table(columns, tuple(rows))


def _chart(title: str, axes: Axes, lines: Sequence[Line], *, is_by_layer: bool = False) -> Chart:
    low, high = axes.get_ylim()
    is_log = axes.get_yscale() == "log"
    return Chart(title, axes.get_ylabel(), is_log, (float(low), float(high)), lines, is_by_layer)


def _line(line: Line, most: int) -> dict[str, Any]:
    bad = np.flatnonzero(~np.isfinite(line.y))
    x_N, y_N = binned(line.x, line.y, most)
    content: dict[str, Any] = {
        "label": line.label,
        "color": line.color,
        "dashes": {"-": "", "--": "5 3", ":": "1 3", "-.": "6 3 1 3"}[line.dashes],
        "x": _numbers(x_N),
        "y": _numbers(y_N),
        "bad": int(line.x[bad[0]]) if bad.size else None,
    }
    if line.low is not None and line.high is not None:
        content["low"] = _numbers(binned(line.x, line.low, most)[1])
        content["high"] = _numbers(binned(line.x, line.high, most)[1])
    return content


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
