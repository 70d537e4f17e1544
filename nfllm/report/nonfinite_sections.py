"""The section about values that are not finite: where they began, and what led up to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nfllm.analysis.numerics import (
    GRADIENT_SITES,
    LAYER_SITES,
    MODEL_SITES,
    Ledger,
    NonfiniteCounts,
    find_onset,
)
from nfllm.report import figures
from nfllm.report.figures import Counts
from nfllm.report.page import Block, Pictures, Rows, Section
from nfllm.report.runs import ReportedRun
from nfllm.report.tables import Column, NonFinite, Table, first_nonfinite_table, growth_table

_STEPS_BEFORE = 5


def nonfinite_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    """Where NaN and infinities first appeared, how many, and how large values were before."""
    found = {run.label: _found(run) for run in runs}
    if all(item is None for item in found.values()):
        return
    blocks: list[Block] = [Rows("first_nonfinite", "", first_nonfinite_table(found))]
    growth = growth_table(found, _STEPS_BEFORE)
    if growth.rows:
        caption = "Largest finite absolute values in the probes before."
        blocks.append(Rows("before_nonfinite", caption, growth))
    panels = [
        Counts(run.label, *run.nonfinite)
        for run in runs
        if run.nonfinite is not None and any(values.any() for values in run.nonfinite[1].values())
    ]
    if panels:
        whole = figures.nonfinite_counts(panels)
        each = [figures.nonfinite_counts([panel]) for panel in panels]
        caption = "Number of entries in the probe batch."
        blocks.append(Pictures("nonfinite", caption, whole, each, table=_counts_table(panels)))
    yield Section(
        "Values that are not finite",
        "NaN and infinities in training steps and in the probe batch, with the site that comes "
        "first in order of execution; gradients come last, from the last layer to the first.",
        blocks,
    )


def _counts_table(panels: Sequence[Counts]) -> Table:
    """A row for each run, step, site and layer with an entry that is not finite."""
    columns = Column("run"), Column("step", ",d"), Column("site"), Column("layer", "d")
    rows = [
        (label, int(step), site, layer, int(count))
        for label, steps_N, counts in panels
        for site, counts_NL in counts.items()
        for step, counts_L in zip(steps_N, counts_NL, strict=True)
        for layer, count in enumerate(counts_L)
        if count
    ]
    return Table((*columns, Column("entries", ",d")), tuple(rows))


def _found(run: ReportedRun) -> NonFinite | None:
    """The onset of a run; None if nothing was recorded that could show one."""
    probes, steps = _probes(run), _training_steps(run)
    if not probes and not steps:
        return None
    # At equal steps the training step comes first: the probe runs after it.
    onset = find_onset(sorted([*steps, *probes], key=lambda item: item[0]))
    in_training = onset is not None and onset.step in [step for step, _ in steps]
    return NonFinite(onset, in_training, len(probes))


def _probes(run: ReportedRun) -> list[tuple[int, Ledger]]:
    """The ledger of each probe; all values count as NaN, since their kind was not recorded."""
    if run.nonfinite is None:
        return []
    logits = _largest(run, "logit_max_abs")
    residuals = _largest(run, "residual_max_abs")
    ledgers = []
    for n, step in enumerate(run.nonfinite[0].tolist()):
        largest = {"attention_logits": logits.get(step), "residual": residuals.get(step)}
        ledgers.append(
            (
                step,
                {
                    site: _counts(counts_NL[n], largest=largest.get(site))
                    for site, counts_NL in run.nonfinite[1].items()
                },
            )
        )
    return ledgers


def _largest(run: ReportedRun, field: str) -> dict[int, float]:
    steps, values = run.series.get(field, (np.zeros(0, int), np.zeros(0)))
    return {step: float(np.max(value)) for step, value in zip(steps.tolist(), values, strict=True)}


def _training_steps(run: ReportedRun) -> list[tuple[int, Ledger]]:
    """The site that the event of each non-finite training step names."""
    ledgers = []
    for row in run.events("non_finite"):
        site = row.get("site")
        if site in LAYER_SITES + MODEL_SITES + GRADIENT_SITES:
            kinds = [
                np.asarray(row.get(kind, 0)) for kind in ("nan", "positive_inf", "negative_inf")
            ]
            layer = row.get("layer")
            if isinstance(layer, int):
                kinds = [np.where(np.arange(layer + 1) == layer, kind, 0) for kind in kinds]
            ledgers.append((row["step"], {site: _counts(*kinds)}))
    return ledgers


def _counts(
    nan: Any, positive: Any = 0, negative: Any = 0, *, largest: float | None = None
) -> NonfiniteCounts:
    zeros: Any = np.zeros(np.shape(nan), int)
    maximum = zeros + (np.nan if largest is None else largest)
    return NonfiniteCounts(nan, zeros + positive, zeros + negative, zeros, maximum)
