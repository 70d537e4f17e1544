"""How every figure looks: colours, axes, legends, and the grid of panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Formatter, LogLocator, MaxNLocator, NullLocator

# Lines and marks have a middle lightness, to be readable on light and dark backgrounds.
INK = "#0b0b0c"
FAINT = "#8c8c92"
RUN_COLORS = (
    "#3f7fd1",
    "#d9701a",
    "#2f9e62",
    "#cf4a6e",
    "#8a66d0",
    "#9a8128",
    "#1f9aa8",
    "#b75cb5",
)
DEPTH_COLORS = ("#3f7fd1", "#8a66d0", "#cf4a6e", "#d9701a")
PANEL = (4.0, 2.6)  # inches
SMALL = 8.0  # points
TEXT = 9.0

_DASHES = ("-", "--", ":", "-.")
_COLUMNS = 3


def entropy_colormap() -> Colormap:
    """Colours of entropies: dark for attention to few keys, bright for uniform, grey for NaN."""
    return matplotlib.colormaps["viridis"].with_extremes(bad=FAINT)


def entropy_limits(entropies: Sequence[np.ndarray], maximum: float) -> tuple[float, float]:
    """Both ends of the colour scale of entropies, in nats: the smallest of all, and `maximum`.

    The scale is at least a tenth of `maximum` wide, so that noise does not look like a difference.
    """
    values = [float(np.min(e[np.isfinite(e)], initial=maximum)) for e in entropies]
    return max(0.0, min([0.9 * maximum, *values])), maximum


def entropy_digits(limits: tuple[float, float]) -> int:
    """Decimal places needed to distinguish entropies on a colour scale of these limits."""
    return 1 if limits[1] - limits[0] >= 1 else 2


def attention_colormap() -> Colormap:
    """Colours of attention probabilities, from almost white to dark blue.

    Masked cells are transparent, so that they show a light or a dark page's background.
    """
    colors = ("#e6eef8", "#7fabdf", "#2f6bbd", "#12325f")
    return LinearSegmentedColormap.from_list("attention", colors).with_extremes(bad="#00000000")


def depth_colormap() -> Colormap:
    """Colours of layers, from the first to the last."""
    return LinearSegmentedColormap.from_list("depth", DEPTH_COLORS)


def depth_colors(layers: int) -> np.ndarray:
    """The colour of each layer, RGBA, [L, 4]."""
    return depth_colormap()(np.arange(layers) / max(1, layers - 1))


def run_style(place: int) -> dict[str, Any]:
    """Colour and dashes of a run by its index; after eight runs, colours repeat with new dashes."""
    cycle, color = divmod(place, len(RUN_COLORS))
    return {
        "color": RUN_COLORS[color],
        "linestyle": _DASHES[cycle % len(_DASHES)],
        "linewidth": 1.4,
    }


def contrast(rgba: Sequence[float]) -> str:
    """Near black or white, whichever reads better on `rgba` (relative luminance of WCAG 2).

    Pure black is avoided: SVG omits it as the default, and the page's text colour would apply.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#050505" if luminance > 0.179 else "#ffffff"


def panel_grid(width: float, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure of one panel for each of `heights`, in inches, at most three to a row.

    Rows are as equal as can be: four panels are 2 x 2. All panels are `width` inches wide; a row is
    as high as its highest panel.
    """
    columns = math.ceil(len(heights) / math.ceil(len(heights) / _COLUMNS))
    rows = [max(heights[first : first + columns]) for first in range(0, len(heights), columns)]
    figure = Figure(figsize=(width * columns, sum(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=rows)
    return figure, [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(heights))]


def style_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Thin axes on two sides, small ticks, and a literal title."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=FAINT, linewidth=0.6)
    axes.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK, width=0.6, length=3)
    axes.set_facecolor("none")
    axes.set_title(literal(shortened(title, 36)), loc="left", fontsize=TEXT, color=INK)
    axes.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT, color=INK)


def padded(low: float, high: float) -> tuple[float, float]:
    """The range of an axis that holds these values, with a margin.

    Values that hardly differ get a margin of their own size, so that rounding errors do not look
    like a curve.
    """
    if not math.isfinite(high - low):
        return -1.0, 1.0
    span, size = high - low, max(abs(low), abs(high))
    margin = 0.05 * (span if span > 1e-3 * size else size) or 1.0
    return low - margin, high + margin


def set_index_ticks(axis: Any, count: int, most: int) -> None:
    """Ticks at the indices 0 to `count` - 1, thinned to at most `most`."""
    step = 2 ** max(0, math.ceil(math.log2(count / most)))
    axis.set_major_locator(FixedLocator(list(range(0, count, step))))
    axis.set_tick_params(labelsize=SMALL, length=0, labelcolor=INK)


def set_step_axis(axes: Axes) -> None:
    """A horizontal axis of optimizer steps, from the first recorded step to the last."""
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def set_log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at 1, 2 and 5 of each decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def add_color_bar(
    figure: Figure,
    axes: Any,
    scale: ScalarMappable,
    ticks: Sequence[float],
    label: str,
    form: str | Formatter,
) -> None:
    """A bar beside `axes` that explains the colours of `scale`."""
    shrink = min(1.0, 3.0 / figure.get_figheight())
    place: Any = {"anchor": (0.0, 1.0), "panchor": False, "pad": 0.02}
    bar = figure.colorbar(scale, ax=axes, shrink=shrink, aspect=18, **place)
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, color=FAINT, width=0.6, length=2)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_major_formatter(form)
    bar.outline.set_visible(False)


def add_depth_bar(figure: Figure, axes: Axes, layers: int) -> None:
    """A bar that explains the colours of `depth_colormap` for this number of layers."""
    scale = ScalarMappable(Normalize(-0.5, layers - 0.5), depth_colormap())
    ticks = sorted({0, (layers - 1) // 2, layers - 1})
    add_color_bar(figure, axes, scale, ticks, "layer", "{x:.0f}")


def add_legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int, title: str = ""
) -> None:
    """A legend under the panels; the figure becomes taller, so that the panels keep their size.

    `columns` holds for short labels; with long ones there is one column.
    """
    columns = columns if max(map(len, labels)) <= 24 else 1
    rows = math.ceil(len(labels) / columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.08 + 0.17 * rows)
    legend = figure.legend(
        handles,
        [literal(shortened(label, 48)) for label in labels],
        loc="outside lower center",
        ncols=min(columns, len(labels)),
        title=title,
        title_fontsize=SMALL,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.4,
    )
    legend.get_title().set_color(INK)


def shortened(text: str, most: int) -> str:
    """`text`, its middle replaced by an ellipsis where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def literal(text: str) -> str:
    """`text` as matplotlib shows it unchanged: no math mode, and not hidden by an underscore."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
