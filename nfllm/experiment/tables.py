"""Tables of an experiment: numbers in, rows out, the same for the page and for RESULTS.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np

from nfllm.analysis import collapse_share, overload_share, seed_interval
from nfllm.config import Config, differences
from nfllm.config.removal import model_at_end
from nfllm.experiment.grid import Entry
from nfllm.experiment.measured import GroupResults, Measured
from nfllm.experiment.outcome import Outcome
from nfllm.report.tables import Cell, Column, Table
from nfllm.rundir.perplexity import perplexity

LOSS_COLUMNS = (
    Column("seeds", "d"),
    Column("eval loss (nats)", ".4f"),
    Column("95% from", ".4f"),
    Column("95% to", ".4f"),
    Column("perplexity", ".2f"),
)
HeadShare = Callable[[np.ndarray, float], jax.Array]
_MOST_KEYS = 8  # that have a column each
_UNCOMMON = "keys not at their most common value"


def comparison_table(group: GroupResults) -> Table:
    """Loss of each variant over its seeds, beside the keys in which the variants differ.

    With more than eight such keys, one column lists those that are not at the group's most common
    value.
    """
    keys = varying_keys(group)
    settings = {
        variant: {key: _setting(next(iter(runs.values())).entry.config, key) for key in keys}
        for variant, runs in group.variants.items()
    }
    if len(keys) > _MOST_KEYS:
        settings = _uncommon(settings)
        keys = [_UNCOMMON]
    rows: list[tuple[Cell, ...]] = []
    others = {variant: without_result(runs) for variant, runs in group.variants.items()}
    for variant, runs in group.variants.items():
        config = next(iter(runs.values())).entry.config
        rows.append(
            (
                variant,
                model_at_end(config).statistics,
                *settings[variant].values(),
                *loss_cells(group.losses(variant).values()),
                *([others[variant] or "–"] if any(others.values()) else []),
            )
        )
    columns = [
        Column("variant"),
        Column("normalization"),
        *map(Column, keys),
        *LOSS_COLUMNS,
    ]
    if any(others.values()):
        columns.append(Column("runs that did not finish"))
    return Table(tuple(columns), tuple(rows))


def _uncommon(settings: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """By variant, the settings that are not the most common ones of their keys, in one cell."""
    common = {
        key: Counter(each[key] for each in settings.values()).most_common(1)[0][0]
        for key in next(iter(settings.values()), {})
    }
    return {
        variant: {
            _UNCOMMON: ", ".join(f"{k}={v}" for k, v in each.items() if v != common[k]) or "–"
        }
        for variant, each in settings.items()
    }


def varying_keys(group: GroupResults) -> list[str]:
    """The config keys, except the seed, in which the runs of the group differ."""
    configs = [run.entry.config for run in group]
    found = {key for config in configs for key in differences(configs[0], config)}
    return sorted(found - {"training.seed"})


def loss_cells(losses: Collection[float]) -> tuple[Cell, ...]:
    """The cells of `LOSS_COLUMNS`: mean and 95% interval of Student's t; None if unknown."""
    if not losses:
        return 0, None, None, None, None
    mean, low, high = map(float, seed_interval(list(losses)))
    bounds = (low, high) if math.isfinite(low) else (None, None)
    return len(losses), mean, *bounds, perplexity(mean)


def entropy_table(group: GroupResults) -> Table:
    """Head entropy of each variant, as means over its seeds, at the last probe."""
    columns = (
        Column("variant"),
        Column("mean entropy (nats)", ".3f"),
        Column("heads ≥ 3M/4, early half (%)", ".0f"),
        Column("heads ≥ 3M/4, late half (%)", ".0f"),
        Column("heads ≥ 3M/4, all (%)", ".0f"),
        Column("heads < M/4 (%)", ".0f"),
    )
    maximum = group.maximum
    rows = []
    for variant in group.variants:
        entropies = list(group.entropies(variant).values())
        if not entropies or maximum is None:
            continue
        half = entropies[0].shape[0] // 2

        def share(part: Sequence[np.ndarray], of: HeadShare = overload_share) -> float | None:
            shares = [float(of(e.reshape(-1), maximum)) for e in part if e.size]
            return 100 * float(np.mean(shares)) if shares else None

        rows.append(
            (
                variant,
                float(np.mean(entropies)),
                share([e[:half] for e in entropies]),
                share([e[half:] for e in entropies]),
                share(entropies),
                share(entropies, collapse_share),
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
    """Loss rise and linear fit for each layer of each run."""
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
    """Every run without its own result, and the reason."""
    rows = []
    for entry in entries:
        outcome = outcomes[entry.name]
        if entry.same_as is not None:
            reason = f"has the same config as {entry.same_as}, whose run is used for both"
            rows.append((entry.name, "duplicate", reason))
        elif outcome.status != "finished":
            rows.append((entry.name, outcome.status, outcome.message))
    return Table((Column("run"), Column("status"), Column("why")), tuple(rows))


def shown_runs(group: GroupResults) -> list[Measured]:
    """The run of each variant's first seed, which the figures show."""
    first = (next(iter(runs.values())) for runs in group.variants.values())
    return [run for run in first if run.run is not None]


def without_result(runs: Mapping[int, Measured]) -> str:
    """The runs of a variant that did not finish, and how they ended."""
    return ", ".join(
        f"{run.outcome.status} (seed {seed})"
        for seed, run in runs.items()
        if run.outcome.status != "finished"
    )


def _setting(config: Config, key: str) -> str:
    section, _, name = key.partition(".")
    value = config.to_dict()[section][name]
    return f"{value:g}" if isinstance(value, float) else str(value)
