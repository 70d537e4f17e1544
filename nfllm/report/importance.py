"""How much each head matters beside how uniform its attention is: arrays in, a Figure out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from nfllm.analysis.intervals import Interval
from nfllm.report.style import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    add_depth_bar,
    attention_colormap,
    contrast,
    depth_colors,
    entropy_colormap,
    entropy_limits,
    literal,
    padded,
    set_index_ticks,
    style_axes,
)

_SCATTER_WIDTH = 3.8  # inches
_MOST_NAMED = 3  # heads of the scatter plot
_MOST_WRITTEN = 96  # heads whose values fit into their cells
_LEAST_FOR_LABEL = 0.15  # of the largest rise


def importance_figure(
    rise_LH: Interval, entropy_LH: Any, *, ceiling: float | None = None, title: str = ""
) -> Figure:
    """Maps of each head's entropy and of the rise of the loss without it, and a scatter plot.

    Args:
      rise_LH: nats per target, with its interval: `nfllm.head_importance(...).rise_LH`.
      entropy_LH: mean entropy of each head in nats, `[L, H]`, on the same text.
      ceiling: the maximum entropy, such as `nfllm.analysis.causal_entropy_ceiling(T)`; a dashed
        line if given.
      title: written over the figure.

    Raises:
      ValueError: the arrays do not all have one shape `[L, H]`.

    Example:
      >>> rise_LH = Interval(np.array([[0.0, 0.2]]), np.array([[0.0, 0.1]]), np.array([[0.1, 0.3]]))
      >>> figure = importance_figure(rise_LH, [[3.8, 1.2]], ceiling=3.88)
      >>> [axes.get_title(loc="left") for axes in figure.axes[:3]]
      ['entropy (nats)', 'rise of the loss (nats)', 'rise against entropy']
    """
    entropy, rise, low, high = _checked(rise_LH, entropy_LH)
    layers, heads = entropy.shape
    width = _map_width(heads)
    widths = [width, width, _SCATTER_WIDTH]
    figure = Figure(figsize=(sum(widths), _height(layers)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=widths)
    _maps(left, middle, entropy, rise, ceiling)
    _scatter(figure, right, entropy, rise, low, high, ceiling)
    if title:
        figure.suptitle(literal(title), fontsize=10, color=INK)
    return figure


def importance_panels(
    rise_LH: Interval, entropy_LH: Any, *, ceiling: float | None = None, title: str = ""
) -> list[Figure]:
    """The maps and the scatter plot of `importance_figure`, each a figure for a narrow page."""
    entropy, rise, low, high = _checked(rise_LH, entropy_LH)
    layers, heads = entropy.shape
    widths = [_map_width(heads), _map_width(heads), _SCATTER_WIDTH]
    panels = [Figure(figsize=(width, _height(layers)), layout="constrained") for width in widths]
    left, middle, right = (panel.subplots() for panel in panels)
    _maps(left, middle, entropy, rise, ceiling)
    _scatter(panels[2], right, entropy, rise, low, high, ceiling)
    for panel in panels:
        panel.suptitle(literal(title), fontsize=TEXT, color=INK)
    return panels


def _checked(rise_LH: Interval, entropy_LH: Any) -> list[np.ndarray]:
    """Entropy, rise and both ends of its interval, as arrays [L, H]."""
    arrays = [np.asarray(values, np.float64) for values in (entropy_LH, *rise_LH)]
    if arrays[0].ndim != 2 or len({array.shape for array in arrays}) > 1:
        raise ValueError(
            "expected rise and entropy of one shape [L, H], got "
            f"{list(arrays[1].shape)} and {list(arrays[0].shape)}"
        )
    return arrays


def _height(layers: int) -> float:
    return max(2.8, 0.32 * layers + 1.1)  # inches


def _map_width(heads: int) -> float:
    return max(2.0, 0.42 * heads + 1.1)


def _maps(
    left: Axes, right: Axes, entropy_LH: np.ndarray, rise_LH: np.ndarray, ceiling: float | None
) -> None:
    limits = entropy_limits([entropy_LH], float(ceiling or np.nanmax(entropy_LH, initial=1e-3)))
    _map(left, entropy_LH, entropy_colormap(), limits, "entropy (nats)", digits=2)
    # Where no head helps, the values are still written with their digits.
    most = float(np.nanmax(rise_LH, initial=0.0) or np.nanmax(np.abs(rise_LH), initial=0.0)) or 1.0
    digits = min(4, max(1, 1 - math.floor(math.log10(most))))
    _map(right, rise_LH, attention_colormap(), (0.0, most), "rise of the loss (nats)", digits)


def _scatter(
    figure: Figure,
    axes: Axes,
    entropy_LH: np.ndarray,
    rise_LH: np.ndarray,
    low_LH: np.ndarray,
    high_LH: np.ndarray,
    ceiling: float | None,
) -> None:
    """A point a head, with its interval, coloured by layer."""
    style_axes(axes, "rise against entropy", "entropy (nats)", "rise of the loss (nats)")
    layers = len(entropy_LH)
    shades = depth_colors(layers)
    for layer in range(layers):
        ends = np.abs(np.stack([rise_LH - low_LH, high_LH - rise_LH])[:, layer])
        style: Any = {"fmt": "o", "markersize": 4, "elinewidth": 1, "color": shades[layer]}
        axes.errorbar(entropy_LH[layer], rise_LH[layer], ends, **style)
    axes.axhline(0.0, color=FAINT, linewidth=0.6, zorder=0)
    if np.isfinite(entropy_LH).any():
        known = [entropy_LH[np.isfinite(entropy_LH)], [] if ceiling is None else [ceiling]]
        axes.set_xlim(*padded(*(float(end(np.concatenate(known))) for end in (np.min, np.max))))
    if ceiling is not None:
        axes.axvline(ceiling, color=FAINT, linewidth=1.0, linestyle="--", zorder=0)
    _name(axes, entropy_LH, rise_LH)
    add_depth_bar(figure, axes, layers)


def _map(
    axes: Axes,
    values_LH: np.ndarray,
    colors: Colormap,
    limits: tuple[float, float],
    name: str,
    digits: int,
) -> None:
    """A cell for each head, with its value where cells are few."""
    norm = Normalize(*limits, clip=True)
    axes.imshow(values_LH, norm=norm, cmap=colors, interpolation="nearest", aspect="auto")
    style_axes(axes, name, "head", "layer")
    axes.spines[:].set_visible(False)
    set_index_ticks(axes.xaxis, values_LH.shape[1], most=16)
    set_index_ticks(axes.yaxis, values_LH.shape[0], most=24)
    if values_LH.size > _MOST_WRITTEN:
        return
    for (layer, head), value in np.ndenumerate(values_LH):
        # Adding 0 turns the -0 of a small negative value into 0.
        text = f"{round(value, digits) + 0.0:.{digits}f}" if np.isfinite(value) else "×"
        style: Any = {"ha": "center", "va": "center", "in_layout": False, "fontsize": 7}
        axes.text(head, layer, text, color=contrast(colors(float(norm(value)))), **style)


def _name(axes: Axes, entropy_LH: np.ndarray, rise_LH: np.ndarray) -> None:
    """Writes layer.head beside the heads that matter most."""
    order = np.argsort(-np.nan_to_num(rise_LH, nan=-np.inf), axis=None)[:_MOST_NAMED]
    least = _LEAST_FOR_LABEL * max(0.0, float(np.nanmax(rise_LH, initial=0.0)))
    for layer, head in zip(*np.unravel_index(order, rise_LH.shape), strict=True):
        if np.isfinite(rise_LH[layer, head]) and rise_LH[layer, head] > least:
            axes.annotate(
                f"{layer}.{head}",
                (entropy_LH[layer, head], rise_LH[layer, head]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=SMALL,
                color=INK,
            )
