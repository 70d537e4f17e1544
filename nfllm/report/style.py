"""How every figure looks: colours, axes, legends, and the grid of panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

# Lines and marks are of middle lightness, to be read on a light and on a dark ground alike.
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
    """Colours of entropies: dark is attention to one key, bright uniform, grey no number."""
    return matplotlib.colormaps["viridis"].with_extremes(bad=FAINT)


def depth_colormap() -> Colormap:
    """Colours of layers, from the first to the last."""
    return LinearSegmentedColormap.from_list("depth", DEPTH_COLORS)


def run_style(index: int) -> dict[str, Any]:
    """Colour and dashes of a run by its index; colours used up come back with other dashes."""
    cycle, color = divmod(index, len(RUN_COLORS))
    return {
        "color": RUN_COLORS[color],
        "linestyle": _DASHES[cycle % len(_DASHES)],
        "linewidth": 1.4,
    }


def contrast(rgba: Sequence[float]) -> str:
    """Black or white, whichever reads better on `rgba` (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def panel_grid(count: int, panel: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `panel` inches wide and high, at most three to a row."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def style_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Thin axes on two sides, small ticks, texts taken literally."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=FAINT, linewidth=0.6)
    axes.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK, width=0.6, length=3)
    axes.set_facecolor("none")
    axes.set_title(literal(title), loc="left", fontsize=TEXT, color=INK)
    axes.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT, color=INK)


def set_index_ticks(axis: Any, count: int) -> None:
    """Ticks at the indices 0 to `count` - 1, thinned to at most 16."""
    step = 2 ** max(0, math.ceil(math.log2(count / 16)))
    axis.set_major_locator(FixedLocator(list(range(0, count, step))))
    axis.set_tick_params(labelsize=SMALL, length=0, labelcolor=INK)


def add_color_bar(
    figure: Figure, axes: Any, scale: ScalarMappable, ticks: Sequence[float], label: str, form: str
) -> None:
    """A bar beside `axes` that explains the colours of `scale`."""
    rows = figure.get_figheight()
    bar = figure.colorbar(scale, ax=axes, pad=0.02, shrink=min(1.0, 3.0 / rows), aspect=18)
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, color=FAINT, width=0.6, length=2)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_major_formatter(form)
    bar.outline.set_visible(False)


def add_depth_bar(figure: Figure, axes: Axes, layers: int) -> None:
    """Explains the colours of `depth_colormap` for so many layers."""
    scale = ScalarMappable(Normalize(-0.5, layers - 0.5), depth_colormap())
    ticks = sorted({0, (layers - 1) // 2, layers - 1})
    add_color_bar(figure, axes, scale, ticks, "layer", "{x:.0f}")


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """A legend under the panels; the figure grows by it, so that the panels keep their size."""
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.08 + 0.17 * rows)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, len(labels)),
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.4,
    )


def literal(text: str) -> str:
    """`text` as matplotlib shows it unchanged: no math mode, and not hidden by an underscore."""
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
