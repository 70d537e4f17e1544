"""Figures of entropic overload over seeds: heads, layers, and layers through training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, MaxNLocator

from nfllm.analysis.heads import OVERLOADED, early_layers
from nfllm.experiment.measured import GroupResults
from nfllm.papers.departure import layer_entropies
from nfllm.report.figures import Heatmap, draw_heatmap
from nfllm.report.style import (
    FAINT,
    PANEL,
    add_color_bar,
    add_legend,
    entropy_colormap,
    entropy_limits,
    panel_grid,
    run_style,
    set_step_axis,
    style_axes,
)

_CELL = 0.36  # inches


def overload_picture(group: GroupResults, names: Mapping[str, str], ceiling: float) -> Figure:
    """Final entropy of each head, averaged over seeds, and of each layer with a band over seeds.

    Args:
      group: the results; every variant in `names` needs at least one run with entropies.
      names: from variant to label; there is one heatmap for each.
      ceiling: the causal ceiling in nats: the upper end of the colour scale, and the dashed line.
    """
    found = {variant: _by_seed(group, variant) for variant in names}
    means = {variant: entropy_SLH.mean(0) for variant, entropy_SLH in found.items()}
    layers, heads = next(iter(means.values())).shape
    height = _CELL * layers + 0.75
    widths = [max(1.6, _CELL * heads + 0.6)] * len(means) + [PANEL[0]]
    figure = Figure(figsize=(sum(widths) + 0.8, height), layout="constrained")
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    maps = [figure.add_subplot(grid[i]) for i in range(len(means))]
    low, high = entropy_limits(list(means.values()), ceiling)
    scale = ScalarMappable(Normalize(low, high), entropy_colormap())
    for axes, (variant, entropy_LH) in zip(maps, means.items(), strict=True):
        draw_heatmap(axes, Heatmap(names[variant], entropy_LH, None), scale)
    ticks = np.linspace(low, high, 5).tolist()
    form = FixedFormatter([*(f"{tick:.2f}" for tick in ticks[:-1]), f"{high:.2f}\nceiling"])
    add_color_bar(figure, maps, scale, ticks, "entropy (nats)", form)
    axes = figure.add_subplot(grid[len(means)])
    style_axes(axes, "Mean of each layer's heads", "layer", "entropy (nats)")
    lines = [
        _draw_band(axes, np.arange(layers), entropy_SLH.mean(-1), place, names[variant], marker="o")
        for place, (variant, entropy_SLH) in enumerate(found.items())
    ]
    axes.axhline(ceiling, color=FAINT, linestyle="--", linewidth=1.0, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    add_legend(figure, lines, [names[variant] for variant in found], columns=2)
    return figure


def layers_through_training(group: GroupResults, names: Mapping[str, str]) -> Figure:
    """A panel for each layer of the first half: mean entropy of its heads over steps, by variant.

    Bands are from the lowest seed to the highest; the dashed line is 3/4 of the group's M.
    """
    found = {variant: layer_entropies(group, variant) for variant in names}
    layers = early_layers(next(iter(found.values()))[1].shape[2])
    figure, all_axes = panel_grid(PANEL[0], [PANEL[1]] * layers)
    lines: dict[str, Line2D] = {}
    for layer, axes in enumerate(all_axes):
        style_axes(axes, f"layer {layer}", "step", "entropy (nats)")
        for place, (variant, (steps_N, entropy_SNL)) in enumerate(found.items()):
            label = names[variant]
            lines[label] = _draw_band(axes, steps_N, entropy_SNL[:, :, layer], place, label)
        if group.maximum is not None:
            axes.axhline(
                OVERLOADED * group.maximum, color=FAINT, linestyle="--", linewidth=1.0, zorder=1
            )
        set_step_axis(axes)
    add_legend(figure, list(lines.values()), list(lines), columns=2)
    return figure


def _by_seed(group: GroupResults, variant: str) -> np.ndarray:
    """Head entropies `[S, L, H]` at the last probe."""
    entropies = group.entropies(variant)
    return np.stack([entropies[seed] for seed in sorted(entropies)])


def _draw_band(
    axes: Axes, x_N: np.ndarray, y_SN: np.ndarray, place: int, label: str, marker: str = ""
) -> Line2D:
    """The mean over seeds, and a band from the lowest seed to the highest."""
    style = run_style(place)
    (line,) = axes.plot(x_N, y_SN.mean(0), **style, marker=marker, markersize=4, label=label)
    if len(y_SN) > 1:
        axes.fill_between(
            x_N, y_SN.min(0), y_SN.max(0), color=style["color"], alpha=0.2, linewidth=0
        )
    return line
