"""The sections about training: losses, the signal and its spectra, and learned slopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import jax.numpy as jnp
import numpy as np

from nfllm.analysis.neurons import weight_decay_curve
from nfllm.config.derived import Site
from nfllm.report import figures
from nfllm.report.charts import (
    curves_chart,
    curves_table,
    layers_chart,
    layers_table,
    profiles_table,
)
from nfllm.report.figures import Curve, LayerCurves
from nfllm.report.page import Block, Pictures, Rows, Section
from nfllm.report.runs import ReportedRun
from nfllm.report.seeds import SeedGroup, seed_curve
from nfllm.report.tables import participation_table
from nfllm.training.schedules import make_schedule

_PARTICIPATION = ("mlp_pre_participation", "mlp_post_participation")


def loss_sections(groups: Sequence[SeedGroup]) -> Iterator[Section]:
    """Training and evaluation loss, and the gradient norm, over steps; one curve for all seeds."""
    wanted = (
        ("loss_nats", "train_loss", "training loss (nats)", False),
        ("eval_loss_nats", "eval_loss", "evaluation loss (nats)", False),
        ("grad_norm", "grad_norm", "gradient norm", True),
    )
    blocks: list[Block] = []
    for field, name, ylabel, log in wanted:
        series = [curve for group in groups if (curve := seed_curve(group, field)) is not None]
        if series:
            figure = figures.curves(series, ylabel, log)
            chart = curves_chart(series, figure.axes[0])
            table = curves_table(series, ylabel)
            blocks.append(Pictures(name, "", figure, [figure], [chart], table))
    if blocks:
        lead = (
            "Long series are drawn as means of equal bins of steps. A cross on the lower edge "
            "marks a run's first value that is not finite."
        )
        if any(len(group.runs) > 1 for group in groups):
            lead += " For several seeds, the line is the mean and the band goes from the lowest "
            lead += "to the highest."
        yield Section("Loss", lead, blocks)


def signal_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Size of pre-activations, residual stream and attention logits by layer, at the last probe."""
    wanted = (
        ("mlp_pre_rms", "layer", "rms of the MLP's pre-activation"),
        ("residual_rms", "depth (blocks passed)", "rms of the residual stream"),
        ("logit_max_abs", "layer", "largest |attention logit|"),
    )
    blocks = [block for field, *labels in wanted for block in _profile(runs, field, *labels)]
    if blocks:
        yield Section(
            "Size of the signal by layer",
            "At the last probe. Near zero a GELU is linear: where the rms of its inputs is far "
            "below 1, the MLP is nearly a linear map.",
            blocks,
        )


def spectrum_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Participation ratio before and after the activation, by layer and through training."""
    labels = {field: f"participation, {field.split('_')[1]}-activation" for field in _PARTICIPATION}
    blocks: list[Block] = []
    for field, ylabel in labels.items():
        blocks += _profile(runs, field, "layer", ylabel)
    if blocks:
        table = participation_table(
            {run.label: tuple(map(run.last, _PARTICIPATION)) for run in runs},
            {run.label: run.model.mlp_width for run in runs if run.model is not None},
        )
        blocks.append(Rows("participation", "By layer, at the last probe.", table, shown=False))
    for field, ylabel in labels.items():
        panels = [
            LayerCurves(run.label, *run.series[field], None) for run in runs if field in run.series
        ]
        if panels:
            name = f"{field}_training"
            blocks.append(through_training(name, "Through training.", panels, ylabel, log=True))
    if blocks:
        yield Section(
            "Spectra of the MLP",
            "Participation ratio of the covariance of the MLP's units over all probe tokens, "
            "before and after the activation: about how many directions the tokens vary in, from "
            "1 to the width of the MLP.",
            blocks,
        )


def slope_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Learned slopes through training, beside what weight decay alone would leave of them."""
    panels = [
        LayerCurves(run.label, *run.series["negative_slopes"], slopes_without_gradient(run))
        for run in runs
        if "negative_slopes" in run.series
    ]
    if panels:
        yield Section(
            "Learned slopes through training",
            "The dashed line is what weight decay alone would leave of a slope, without any "
            "gradient.",
            [through_training("negative_slopes", "", panels, "slope for x < 0")],
        )


def saturation_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """The share of saturated entries of point functions, by site and through training."""
    panels = []
    for run in runs:
        for site in get_args(Site):
            if (name := f"saturation_{site}") not in run.series:
                continue
            steps, values = run.series[name]
            shares_NL = 100 * values.reshape(len(steps), -1)  # N x 1 for a site outside the layers
            panels.append(LayerCurves(run.label_at(site), steps, shares_NL, None))
    if panels:
        yield Section(
            "Saturation of point functions through training",
            "Share of entries with |alpha x + shift| > 2 in the probe batch, by site and layer. "
            "The threshold is a convention.",
            [through_training("saturation", "", panels, "saturated entries (%)")],
        )


def slopes_without_gradient(run: ReportedRun) -> Curve | None:
    """What the slopes would be at the recorded steps if only weight decay acted on them.

    None for a run that began with the slopes of another.
    """
    if run.record is None or run.record.origin is not None:
        return None
    config = run.record.config
    steps = run.series["negative_slopes"][0]
    names = run.record.decayed_parameters
    if not any(name.rpartition(".")[2] == "slope" for name in names):
        return Curve("start (no decay)", steps, np.full(len(steps), config.model.slope))
    updates = jnp.arange(max(1, steps[-1]))
    rates = make_schedule(config.optimizer, config.training.steps)(updates)
    values = weight_decay_curve(config.model.slope, rates, config.optimizer.weight_decay)
    return Curve("decay alone", steps, np.asarray(values)[steps])


def _profile(
    runs: Sequence[ReportedRun], field: str, xlabel: str, ylabel: str
) -> Iterator[Pictures]:
    """A quantity by layer at the last probe, the maximum over heads, of the runs that have it."""
    series = []
    for index, run in enumerate(runs):
        value = run.last(field)
        if value is not None:
            value_L = value.max(axis=1) if value.ndim == 2 else value
            series.append(Curve(run.label, np.arange(len(value_L)), value_L, index))
    if series:
        figure = figures.layer_profiles(series, xlabel, ylabel)
        yield Pictures(field, "", figure, [figure], table=profiles_table(series, ylabel))


def through_training(
    name: str, caption: str, panels: Sequence[LayerCurves], ylabel: str, *, log: bool = False
) -> Pictures:
    """One panel per run, all with the same vertical range."""
    limits = figures.common_range(panels, log=log)
    each = [figures.layer_curves([panel], ylabel, limits, log=log) for panel in panels]
    whole = figures.layer_curves(panels, ylabel, limits, log=log)
    charts = [layers_chart(panel, f.axes[0]) for panel, f in zip(panels, each, strict=True)]
    return Pictures(name, caption, whole, each, charts, layers_table(panels, ylabel))
