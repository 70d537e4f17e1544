"""Arrays in, a matplotlib Figure out.

Every function is pure: it reads no file, writes none, and touches no global state of matplotlib. A
figure's size follows from how much it shows, so 48 layers or 6 runs stay readable. Axes as in
`nfllm.model.decoder`: L layers, H heads; N is the number of recorded steps, S of sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, MaxNLocator

from nfllm.report.style import (
    FAINT,
    INK,
    PANEL,
    SMALL,
    add_color_bar,
    add_depth_bar,
    add_legend,
    contrast,
    depth_colors,
    entropy_colormap,
    entropy_digits,
    entropy_limits,
    literal,
    padded,
    panel_grid,
    run_style,
    set_index_ticks,
    set_log_scale,
    set_step_axis,
    shortened,
    style_axes,
)

QUARTERS = ("0 to M/4", "M/4 to M/2", "M/2 to 3M/4", "3M/4 to M")

_MAX_POINTS = 160


class Curve(NamedTuple):
    """A quantity `y` `[N]` over `x` `[N]`: steps, or layers.

    `place` is the run's index in the report, which gives it the same colour in all figures. `low`
    and `high` `[N]` bound a band around the curve, for example over seeds.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    place: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None


class LayerCurves(NamedTuple):
    """A quantity of every layer, `y` `[N, L]`, over steps `x` `[N]`, and what to compare it to."""

    label: str
    x: np.ndarray
    y: np.ndarray
    reference: Curve | None


class Heatmap(NamedTuple):
    """Entropy of every head in nats, `[L, H]`, and the causal ceiling of the run's context."""

    label: str
    entropy: np.ndarray
    ceiling: float | None


class Counts(NamedTuple):
    """Number of non-finite values over steps `x` `[N]`, `[N, L]` for each site."""

    label: str
    x: np.ndarray
    counts: Mapping[str, np.ndarray]


def entropy_heatmaps(heatmaps: Sequence[Heatmap], maximum: float) -> Figure:
    """Entropy of each head, layers downward and heads to the right, all on one scale.

    Args:
      heatmaps: one panel each; their numbers of layers and heads may differ.
      maximum: entropy in nats at the end of the colour scale, which begins at the smallest one.
    """
    most = max(max(heatmap.entropy.shape) for heatmap in heatmaps)
    cell = min(0.34, max(0.2, 4.2 / most))  # inches; in smaller cells tick labels would touch
    width = max(2.4, cell * max(heatmap.entropy.shape[1] for heatmap in heatmaps) + 0.5)
    figure, panels = panel_grid(width, [max(1.6, cell * len(h.entropy) + 0.7) for h in heatmaps])
    figure.set_figwidth(figure.get_figwidth() + 0.8)  # for the colour bar
    low, high = entropy_limits([heatmap.entropy for heatmap in heatmaps], maximum)
    norm = Normalize(low, high)
    scale = ScalarMappable(norm, entropy_colormap())
    for axes, heatmap in zip(panels, heatmaps, strict=True):
        draw_heatmap(axes, heatmap, scale, with_values=cell >= 0.3)
    ticks = np.linspace(low, high, 5).tolist()
    names = [f"{tick:.2f}" for tick in ticks]
    if all(heatmap.ceiling == maximum for heatmap in heatmaps):
        names[-1] += "\nceiling"
    add_color_bar(figure, panels, scale, ticks, "entropy (nats)", FixedFormatter(names))
    return figure


def draw_heatmap(
    axes: Axes, heatmap: Heatmap, scale: ScalarMappable, *, with_values: bool = True
) -> None:
    """One heatmap on axes that are there, in the colours of `scale`."""
    label, entropy_LH, ceiling = heatmap
    low, high = scale.get_clim()
    colors: Any = {"vmin": low, "vmax": high, "cmap": scale.cmap}
    axes.imshow(entropy_LH, **colors, interpolation="nearest")
    axes.set_anchor("NW")
    xlabel = "head" if ceiling is None else f"head   (ceiling {ceiling:.2f} nats)"
    style_axes(axes, label, xlabel, "layer")
    axes.spines[:].set_visible(False)
    set_index_ticks(axes.xaxis, entropy_LH.shape[1], most=48)
    set_index_ticks(axes.yaxis, entropy_LH.shape[0], most=48)
    if with_values:
        _write_values(axes, entropy_LH, scale, entropy_digits((low, high)))


def head_histograms(labels: Sequence[str], shares_R4: np.ndarray, maximum: float) -> Figure:
    """Share of heads in each quarter of the entropy range, one bar a row.

    Args:
      labels: one per row.
      shares_R4: fractions of all heads; a row adds up to less than 1 if heads have no entropy.
      maximum: the reference maximum M in nats.
    """
    rows = np.arange(len(labels))
    figure = Figure(figsize=(4.4, 0.65 + 0.3 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    colors = entropy_colormap()((np.arange(4) + 0.5) / 4)
    starts_R4 = np.cumsum(shares_R4, axis=1) - shares_R4
    for quarter, color in enumerate(colors):
        start_R, width_R = starts_R4[:, quarter], shares_R4[:, quarter]
        axes.barh(rows, width_R, left=start_R, height=0.72, color=color)
        for row in rows[width_R >= 0.045]:
            _write(
                axes,
                start_R[row] + width_R[row] / 2,
                row,
                f"{100 * width_R[row]:.0f}",
                SMALL,
                color,
            )
    style_axes(axes, "", "share of heads (%)", "")
    axes.spines[:].set_visible(False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.0)
    axes.set_yticks(rows, [literal(shortened(label, 28)) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    handles = [Patch(color=color) for color in colors]
    add_legend(figure, handles, QUARTERS, 4, title=f"quarters of M = {maximum:.2f} nats")
    return figure


def curves(series: Sequence[Curve], ylabel: str, log: bool = False) -> Figure:
    """One line per run over optimizer steps; long series are shown as means of equal bins.

    Values that are not finite leave a gap; the first one of a run is marked by a cross on the lower
    edge. On a linear axis a short spike is cut off if it would flatten everything else.
    """
    figure, (axes,) = panel_grid(PANEL[0], [PANEL[1]])
    style_axes(axes, "", "step", ylabel)
    highs, tops = [0.0], [0.0]
    lines: list[Line2D] = []
    for _, x_N, y_N, place, low_N, high_N in series:
        style = run_style(place)
        x, y = binned(x_N, np.where(y_N > 0, y_N, np.nan) if log else y_N)
        marker = "o" if len(x) == 1 else ""
        lines += axes.plot(x, y, **style, marker=marker, markersize=4)
        if low_N is not None and high_N is not None:
            low, high = (binned(x_N, edge_N)[1] for edge_N in (low_N, high_N))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        bad = np.flatnonzero(~np.isfinite(y_N))
        if bad.size:
            edge = axes.get_xaxis_transform()
            axes.plot(x_N[bad[0]], 0, "x", color=style["color"], transform=edge, clip_on=False)
        if np.isfinite(y).any():
            highs.append(float(np.nanpercentile(y, 98)))
            tops.append(float(np.nanmax(y)))
    set_step_axis(axes)
    if log and len(tops) > 1:
        set_log_scale(axes)
    elif max(tops) > 2.0 * max(highs):
        axes.set_ylim(top=1.1 * max(highs))
    else:
        axes.set_ylim(*padded(*axes.dataLim.intervaly))
    if len(series) > 1:
        add_legend(figure, lines, [curve.label for curve in series], columns=2)
    return figure


def layer_profiles(series: Sequence[Curve], xlabel: str, ylabel: str) -> Figure:
    """One line per run over depth, on a logarithmic axis; `x` of each curve is the layer."""
    figure, (axes,) = panel_grid(PANEL[0], [PANEL[1]])
    style_axes(axes, "", xlabel, ylabel)
    lines: list[Line2D] = []
    for _, x_L, y_L, place, *_ in series:
        y_L = np.where(np.isfinite(y_L) & (y_L > 0), y_L, np.nan)
        if np.isfinite(y_L).any():
            set_log_scale(axes)
        lines += axes.plot(x_L, y_L, **run_style(place), marker="o", markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(series) > 1:
        add_legend(figure, lines, [curve.label for curve in series], columns=2)
    return figure


def layer_curves(
    panels: Sequence[LayerCurves],
    ylabel: str,
    ylim: tuple[float, float] | None = None,
    *,
    log: bool = False,
) -> Figure:
    """One panel per run, one line per layer, coloured by depth; the reference curve is dashed.

    Args:
      panels: what to draw.
      ylabel: quantity and unit.
      ylim: the range of every panel; `common_range` by default.
      log: whether the axis is logarithmic.
    """
    figure, all_axes = panel_grid(PANEL[0], [PANEL[1]] * len(panels))
    low, high = ylim or common_range(panels, log=log)
    for axes, (label, x_N, y_NL, reference) in zip(all_axes, panels, strict=True):
        style_axes(axes, label, "step", ylabel)
        layers = y_NL.shape[1]
        shades = depth_colors(layers)
        for layer in range(layers):
            x, y = binned(x_N, y_NL[:, layer])
            marker = "o" if len(x) == 1 else ""
            axes.plot(x, y, color=shades[layer], linewidth=1.2, marker=marker, markersize=4)
        set_step_axis(axes)
        axes.set_ylim(low, high)
        if log:
            set_log_scale(axes)
        if reference is not None:
            axes.plot(reference.x, reference.y, "--", color=FAINT, linewidth=1.2, zorder=1)
            _label_end(axes, reference)
        add_depth_bar(figure, axes, layers)
    return figure


def nonfinite_counts(panels: Sequence[Counts]) -> Figure:
    """One panel per run: non-finite values in all layers together over steps, one line per site."""
    figure, all_axes = panel_grid(PANEL[0], [PANEL[1]] * len(panels))
    sites = list(dict.fromkeys(site for panel in panels for site in panel.counts))
    handles: dict[str, Any] = {}
    for axes, (label, x_N, counts_NL) in zip(all_axes, panels, strict=True):
        style_axes(axes, label, "step", "non-finite values")
        for site, values_NL in counts_NL.items():
            style = run_style(sites.index(site))
            (line,) = axes.plot(x_N, values_NL.sum(axis=1), **style, marker="o", markersize=2.5)
            handles.setdefault(site, line)
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        set_step_axis(axes)
        axes.set_ylim(bottom=-0.2)
    add_legend(figure, list(handles.values()), list(handles), columns=3)
    return figure


def common_range(panels: Sequence[LayerCurves], *, log: bool = False) -> tuple[float, float]:
    """A range that holds every finite value; with `log`, every positive one."""
    values = [np.ravel(panel.y) for panel in panels]
    values += [panel.reference.y for panel in panels if panel.reference is not None]
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    if log:
        positive = finite[finite > 0]
        return (0.9 * positive.min(), 1.1 * positive.max()) if positive.size else (0.9, 1.1)
    return padded(float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)


def _write_values(axes: Axes, entropy_LH: np.ndarray, scale: ScalarMappable, digits: int) -> None:
    for (layer, head), value in np.ndenumerate(entropy_LH):
        text = f"{value:.{digits}f}" if math.isfinite(value) else "×"
        _write(axes, head, layer, text, 6.5, scale.to_rgba(value))


def _write(axes: Axes, x: float, y: float, text: str, size: float, ground: Any) -> None:
    """Centres `text` on a background of colour `ground`; layout ignores it, as it is inside."""
    style: Any = {"ha": "center", "va": "center", "in_layout": False}
    axes.text(float(x), float(y), text, fontsize=size, color=contrast(ground), **style)


def _label_end(axes: Axes, curve: Curve) -> None:
    """Writes the curve's label over its right end, or under it near the top of the panel."""
    low, high = axes.get_ylim()
    x, y = float(curve.x[-1]), float(curve.y[-1])
    below = (y - low) / (high - low) > 0.9
    axes.annotate(
        literal(curve.label),
        (x, y),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=SMALL,
        color=INK,
    )


def binned(
    x_N: np.ndarray, y_N: np.ndarray, most: int = _MAX_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal bins if there are more than `most` points; `x_N` and `y_N` otherwise."""
    y_N = np.where(np.isfinite(y_N), y_N, np.nan)
    size = math.ceil(len(x_N) / most)
    if size <= 1:
        return x_N, y_N
    starts = np.arange(0, len(x_N), size)
    counts = np.diff([*starts, len(x_N)])
    return np.add.reduceat(x_N, starts) / counts, np.add.reduceat(y_N, starts) / counts
