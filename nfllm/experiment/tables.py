"""Tables of an experiment: numbers in, rows out, the same for the page and for RESULTS.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from nfllm.analysis import collapse_share, overload_share, seed_interval
from nfllm.experiment.grid import Entry
from nfllm.experiment.measured import GroupResults, Measured
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.verdicts import Verdict
from nfllm.report.published import BASELINE, find_published
from nfllm.report.runs import notation
from nfllm.report.tables import Column, Table, percent_change

_BASELINE_VARIANT = "sm+ln+g"

Measure = Callable[[np.ndarray, float], jax.Array]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a claim."""
    columns = (Column("claim"), Column("published"), Column("verdict"), Column("measured"))
    return Table(columns, tuple(tuple(verdict) for verdict in verdicts))


def perplexity_table(group: GroupResults) -> Table:
    """Loss and perplexity of each variant over its seeds, beside the published change."""
    columns = (
        Column("variant"),
        Column("seeds", "d"),
        Column("eval loss (nats)", ".4f"),
        Column("95% from", ".4f"),
        Column("95% to", ".4f"),
        Column("perplexity", ".2f"),
        Column(f"against {_BASELINE_VARIANT} (%)", "+.1f"),
        Column("published perplexity", ".3f"),
        Column("published change (%)", "+.1f"),
        Column("runs that did not finish"),
    )
    baseline = group.losses(_BASELINE_VARIANT)
    rows = []
    for variant, runs in group.variants.items():
        losses = group.losses(variant)
        # Against the baseline with the same seeds, that is the same order of data.
        shared = sorted(losses.keys() & baseline.keys())
        change = None
        if shared and variant != _BASELINE_VARIANT:
            change = 100 * math.expm1(np.mean([losses[s] - baseline[s] for s in shared]))
        model = next(iter(runs.values())).entry.config.model
        published = find_published(model, notation(model))
        reference = find_published(model, BASELINE)
        perplexity = published and published.perplexity
        others = ", ".join(
            f"{run.outcome.status} (seed {seed})"
            for seed, run in runs.items()
            if run.outcome.status != "finished"
        )
        mean = low = high = None
        if losses:
            mean, low, high = map(float, seed_interval(list(losses.values())))
        is_interval = low is not None and math.isfinite(low)
        rows.append(
            (
                variant,
                len(losses),
                mean,
                low if is_interval else None,
                high if is_interval else None,
                None if mean is None else math.exp(mean),
                change,
                perplexity,
                percent_change(perplexity, reference and reference.perplexity)
                if variant != _BASELINE_VARIANT
                else None,
                others or "–",
            )
        )
    return Table(columns, tuple(rows))


def entropy_table(group: GroupResults) -> Table:
    """Head entropy of each variant, as means over its seeds, at the last probe."""
    columns = (
        Column("variant"),
        Column("mean entropy (nats)", ".3f"),
        Column("heads ≥ 3M/4, early half (%)", ".0f"),
        Column("heads ≥ 3M/4, late half (%)", ".0f"),
        Column("heads ≥ 3M/4, all (%)", ".0f"),
        Column("heads < M/4 (%)", ".0f"),
        Column("published early (%)", ".0f"),
        Column("published all (%)", ".0f"),
    )
    maximum = group.maximum
    rows = []
    for variant, runs in group.variants.items():
        entropies = list(group.entropies(variant).values())
        if not entropies or maximum is None:
            continue
        half = entropies[0].shape[0] // 2

        def share(part: Sequence[np.ndarray], of: Measure = overload_share) -> float | None:
            shares = [float(of(e.reshape(-1), maximum)) for e in part if e.size]
            return 100 * float(np.mean(shares)) if shares else None

        model = next(iter(runs.values())).entry.config.model
        published = find_published(model, notation(model))
        rows.append(
            (
                variant,
                float(np.mean(entropies)),
                share([e[:half] for e in entropies]),
                share([e[half:] for e in entropies]),
                share(entropies),
                share(entropies, collapse_share),
                published and published.early_overload,
                published and published.overload,
            )
        )
    return Table(columns, tuple(rows))


def cause_table(group: GroupResults) -> Table:
    """Rise of the loss when activations are replaced by their best linear fits, over seeds."""
    columns = (
        Column("variant"),
        Column("early half (nats)", "+.4f"),
        Column("late half (nats)", "+.4f"),
        Column("all (nats)", "+.4f"),
        Column("R² of the fit, first layer", ".3f"),
        Column("lowest R²", ".3f"),
        Column("rms of its input, first layer", ".3g"),
        Column("lowest rms", ".3g"),
        Column("highest rms", ".3g"),
    )
    rows = []
    for variant, runs in group.variants.items():
        causes = [run.cause for run in runs.values() if run.cause is not None]
        if not causes:
            continue
        r_squared_L = np.mean([cause.r_squared for cause in causes], axis=0)
        rms_L = np.mean([cause.pre_rms for cause in causes], axis=0)
        rows.append(
            (
                variant,
                float(np.mean([cause.early_loss - cause.loss for cause in causes])),
                float(np.mean([cause.late_loss - cause.loss for cause in causes])),
                float(np.mean([cause.all_loss - cause.loss for cause in causes])),
                float(r_squared_L[0]),
                float(r_squared_L.min()),
                float(rms_L[0]),
                float(rms_L.min()),
                float(rms_L.max()),
            )
        )
    return Table(columns, tuple(rows))


def cause_by_layer_table(group: GroupResults) -> Table:
    """The same for each layer of each run."""
    columns = (
        Column("variant"),
        Column("seed", "d"),
        Column("layer", "d"),
        Column("loss rise (nats)", "+.4f"),
        Column("R² of the fit", ".4f"),
        Column("slope of the fit", ".4f"),
        Column("rms of its input", ".4g"),
    )
    rows = tuple(
        (
            run.entry.variant,
            run.entry.seed,
            layer,
            loss - run.cause.loss,
            run.cause.r_squared[layer],
            run.cause.slope[layer],
            run.cause.pre_rms[layer],
        )
        for run in group
        if run.cause is not None
        for layer, loss in enumerate(run.cause.layer_loss)
    )
    return Table(columns, rows)


def problem_table(entries: Sequence[Entry], outcomes: Mapping[str, Outcome]) -> Table:
    """Every run that has no result of its own, and why."""
    rows = []
    for entry in entries:
        outcome = outcomes[entry.name]
        if entry.same_as is not None:
            said = f"has the same config as {entry.same_as}, whose run stands for both"
            rows.append((entry.name, "duplicate", said))
        elif outcome.status != "finished":
            rows.append((entry.name, outcome.status, outcome.message))
    return Table((Column("run"), Column("status"), Column("why")), tuple(rows))


def shown_runs(group: GroupResults) -> list[Measured]:
    """One run of each variant, of its first seed: what the figures show."""
    first = (next(iter(runs.values())) for runs in group.variants.values())
    return [run for run in first if run.run is not None]
