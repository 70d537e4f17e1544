"""The sections about attention entropy: heatmap, histogram, and layers through training.

Runs of one context length share a colour scale and a reference maximum. Runs of another context
length have another causal ceiling, so they are shown separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nfllm.analysis.entropy import causal_entropy_ceiling
from nfllm.analysis.heads import (
    collapse_share,
    head_histogram,
    overload_share,
    reference_maximum,
)
from nfllm.report import figures
from nfllm.report.figures import Curve, Heatmap, LayerCurves
from nfllm.report.heatmap import heatmap_html, scale_html
from nfllm.report.page import Block, Markup, Pictures, Rows, Section
from nfllm.report.reference import Reference
from nfllm.report.runs import ReportedRun
from nfllm.report.style import entropy_limits
from nfllm.report.tables import HeadSummary, entropy_table, heads_table
from nfllm.report.training_sections import through_training


class _Group(NamedTuple):
    """Runs of one context length; `context_length` is None if it is unknown."""

    context_length: int | None
    runs: list[ReportedRun]

    @property
    def ceiling(self) -> float | None:
        return None if self.context_length is None else causal_entropy_ceiling(self.context_length)

    @property
    def observed(self) -> float | None:
        """M: the largest head entropy of all these runs, as in the paper; None if there is none."""
        entropies = {run.label: run.last("entropy_nats") for run in self.runs}
        length = self.context_length or 0  # its value does not matter, only that runs share it
        maximum = max(reference_maximum("shared_observed", entropies, length).values())
        return maximum if maximum > 0 else None

    @property
    def scale_end(self) -> float:
        """Upper end of the colour scale: the ceiling, or the largest entropy if that is unknown."""
        return self.ceiling or self.observed or 1.0

    @property
    def limits(self) -> tuple[float, float]:
        """Both ends of the colour scale."""
        return entropy_limits([run.last("entropy_nats") for run in self.runs], self.scale_end)

    @property
    def name(self) -> str:
        return f"Context length {self.context_length or 'unknown'}."

    @property
    def suffix(self) -> str:
        return "" if self.context_length is None else f"_T{self.context_length}"

    def heatmaps(self) -> list[Heatmap]:
        return [Heatmap(run.label, run.last("entropy_nats"), self.ceiling) for run in self.runs]


def entropy_sections(
    runs: Sequence[ReportedRun], reference: Reference | None = None
) -> Iterator[Section]:
    """Heatmaps, histogram and layer-wise entropy of the runs that recorded entropies."""
    recorded = [run for run in runs if "entropy_nats" in run.series]
    if not recorded:
        text = "None of these runs recorded telemetry, so there is no attention entropy to show."
        if any(_without_softmax(run) for run in runs):
            text = f"There is no attention entropy to show.{_left_out(runs)}"
        yield Section("Attention entropy", text, [])
        return
    contexts = sorted({_context(run) or 0 for run in recorded})
    groups = [
        _Group(context or None, [run for run in recorded if (_context(run) or 0) == context])
        for context in contexts
    ]
    yield Section(
        "Attention entropy of each head",
        "Mean entropy over queries and probe sequences, at the last probe. Layers run downward, "
        "heads to the right; bright heads attend nearly uniformly, dark ones to the fewest keys."
        + _left_out(runs),
        [block for group in groups for block in _heatmap_blocks(group, alone=len(groups) == 1)],
    )
    yield Section(
        "Head entropy by quarters",
        "Share of heads in each quarter of M, the largest head entropy observed in the runs of one "
        "context length. Heads in the top quarter are overloaded; before training all heads are, "
        "since attention starts out uniform. Heads in the bottom quarter are collapsed."
        + ("" if reference is None else f" {reference.histogram_note}"),
        [block for group in groups for block in _histogram_blocks(group, reference)],
    )
    yield Section(
        "Layer entropy through training",
        "Mean over the heads of each layer; the dashed line is the causal ceiling.",
        [_training_block(group) for group in groups],
    )


def _without_softmax(run: ReportedRun) -> bool:
    return run.model is not None and not run.model.has_attention_maps


def _left_out(runs: Sequence[ReportedRun]) -> str:
    """A space and a sentence on the runs without entropies, and why; empty if all have some."""
    missing = [run for run in runs if "entropy_nats" not in run.series]
    silent = ", ".join(run.label for run in missing if not _without_softmax(run))
    other = ", ".join(run.label for run in missing if _without_softmax(run))
    return (f" No telemetry was recorded by {silent}." if silent else "") + (
        f" Not defined for {other}, which mixes tokens without a softmax." if other else ""
    )


def _heatmap_blocks(group: _Group, alone: bool) -> Iterator[Block]:
    heatmaps = group.heatmaps()
    start = f"Colour scale from {group.limits[0]:.2f}"
    if group.ceiling is None:
        scale = f"{start} to {group.scale_end:.2f} nats, the largest entropy observed."
    else:
        scale = (
            f"{start} to {group.ceiling:.3f} nats, the causal ceiling ln(T!)/T at "
            f"T = {group.context_length}."
        )
        if group.observed is not None:
            scale += f" The mark is M = {group.observed:.3f} nats, the largest entropy observed."
    if not alone:
        scale = f"{group.name} {scale}"
    names = f"entropy_heatmap{group.suffix}", f"entropy{group.suffix}"
    yield heatmaps_block(heatmaps, *names, scale, group.observed)


def heatmaps_block(
    heatmaps: Sequence[Heatmap],
    figure: str,
    table: str,
    lead: str,
    observed: float | None = None,
) -> Markup:
    """Heatmaps of one context length on one colour scale.

    Args:
      heatmaps: one or more.
      figure: name of the figure's files.
      table: name of the table's file.
      lead: HTML of a paragraph above them.
      observed: an entropy in nats to mark on the scale.
    """
    entropies = [heatmap.entropy for heatmap in heatmaps]
    ceiling = heatmaps[0].ceiling
    finite = [e[np.isfinite(e)].max(initial=0.0) for e in entropies]
    limits = entropy_limits(entropies, ceiling or max(finite) or 1.0)
    maps = "\n".join(heatmap_html(heatmap, limits) for heatmap in heatmaps)
    rows = entropy_table([heatmap.label for heatmap in heatmaps], entropies)
    whole = figures.entropy_heatmaps(heatmaps, limits[1])
    return Markup(
        f"<p>{lead}</p>{scale_html(limits, observed, ceiling)}\n<div class=maps>{maps}</div>",
        [Pictures(figure, "", whole, ()), Rows(table, "", rows)],
    )


def _histogram_blocks(group: _Group, reference: Reference | None) -> Iterator[Block]:
    maximum = group.observed
    if maximum is None:
        yield Markup(f"<p>{group.name} No head of these runs has a finite entropy above 0.</p>")
        return
    labels: list[str] = []
    shares = []
    for run in group.runs:
        labels.append(run.label)
        shares.append(np.asarray(head_histogram(run.last("entropy_nats"), maximum)))
        if reference is None or run.model is None:
            continue
        if f"{run.notation}, published" in labels:
            continue
        published = reference.find(run.model, run.notation)
        if published is not None and published.head_shares is not None:
            labels.append(f"{run.notation}, published")
            shares.append(published.head_shares)
    figure = figures.head_histograms(labels, np.asarray(shares), maximum)
    yield Pictures(f"head_entropy_histogram{group.suffix}", group.name, figure, [figure])
    summaries = [_summary(run, group, maximum) for run in group.runs]
    yield Rows(f"heads{group.suffix}", group.name, heads_table(summaries))


def _summary(run: ReportedRun, group: _Group, maximum: float) -> HeadSummary:
    entropy_LH = run.last("entropy_nats")
    half = len(entropy_LH) // 2
    early, late = entropy_LH[:half].reshape(-1), entropy_LH[half:].reshape(-1)
    return HeadSummary(
        label=run.label,
        mean_entropy=float(np.mean(entropy_LH)),
        ceiling=group.ceiling,
        maximum=maximum,
        early_overload=100 * float(overload_share(early, maximum)) if half else None,
        late_overload=100 * float(overload_share(late, maximum)),
        collapse=100 * float(collapse_share(entropy_LH.reshape(-1), maximum)),
        num_not_finite=int(np.sum(~np.isfinite(entropy_LH))),
    )


def _training_block(group: _Group) -> Pictures:
    panels = []
    for run in group.runs:
        steps, entropy_NLH = run.series["entropy_nats"]
        reference = None
        if group.ceiling is not None:
            ends = np.asarray([steps[0], steps[-1]])
            reference = Curve("causal ceiling", ends, np.full(2, group.ceiling))
        panels.append(LayerCurves(run.label, steps, entropy_NLH.mean(axis=2), reference))
    name = f"layer_entropy{group.suffix}"
    return through_training(name, group.name, panels, "entropy (nats)")


def _context(run: ReportedRun) -> int | None:
    return None if run.model is None else run.model.context_length
