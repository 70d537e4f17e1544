"""Effects through training, with their bands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from nfllm.papers.verdicts import Verdict
from nfllm.report.style import (
    FAINT,
    INK,
    PANEL,
    SMALL,
    literal,
    panel_grid,
    run_style,
    set_step_axis,
    style_axes,
)

_TITLE_WIDTH = 48


def effects_through_training(verdicts: Sequence[Verdict]) -> Figure:
    """One panel for each claim: its effect over steps, with the 95% interval over seeds as a band.

    The dashed line is zero; the claim is that the effect lies above it.
    """
    figure, all_axes = panel_grid(PANEL[0], [PANEL[1]] * len(verdicts))
    for axes, verdict in zip(all_axes, verdicts, strict=True):
        style_axes(axes, "", "step", verdict.unit)
        title = literal(textwrap.fill(verdict.claim, _TITLE_WIDTH))
        axes.set_title(title, loc="left", fontsize=SMALL, color=INK)
        steps = np.asarray([step for step, _ in verdict.trajectory])
        found = np.asarray([tuple(interval) for _, interval in verdict.trajectory], np.float64)
        found = np.where(np.isfinite(found), found, np.nan)
        style = run_style(0)
        axes.plot(steps, found[:, 0], **style)
        axes.fill_between(
            steps, found[:, 1], found[:, 2], color=style["color"], alpha=0.2, linewidth=0
        )
        axes.axhline(0.0, color=FAINT, linestyle="--", linewidth=1.0, zorder=1)
        # The band of two seeds is wide; the axis must show the effect.
        reach = float(np.nanmax(np.abs(found[:, 0]), initial=0.0))
        widest = float(np.nanmax(np.abs(found), initial=0.0))
        if reach > 0:
            limit = min(widest, 4 * reach) * 1.05
            axes.set_ylim(-limit, limit)
        set_step_axis(axes)
        axes.set_xlim(left=0)
    return figure
