"""Sections of the page of the paper's grid: verdicts, and tables beside the published numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from nfllm.analysis.entropy import causal_entropy_ceiling
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.sections import cause_sections, entropy_sections
from nfllm.papers.claims import claims_of
from nfllm.papers.departure import departure_table
from nfllm.papers.entropy_figures import layers_through_training, overload_picture
from nfllm.papers.figures import effects_through_training
from nfllm.papers.tables import (
    entropy_table,
    perplexity_table,
    trajectory_table,
    verdict_table,
)
from nfllm.papers.verdicts import Claim, Verdict, judge_together, summary
from nfllm.report.page import Block, Pictures, Rows, Section

INCONCLUSIVE = "These runs are too short for verdicts to mean anything."

_FEWEST_POINTS = 3
_COMPARED = {"sm+r": "norm-free ReLU", "sm+g": "norm-free GELU"}


def paper_sections(groups: Sequence[GroupResults], *, conclusive: bool = True) -> Iterator[Section]:
    """Verdicts at the end and through training, perplexities, heads, and linear replacements.

    Args:
      groups: the groups of the grid; p-values are corrected over the claims of all of them.
      conclusive: whether the runs are long enough for verdicts to mean anything.
    """
    by_group = judge_groups([claims_of(group) for group in groups])
    yield verdict_section(
        groups,
        by_group,
        "Each claim of the paper, and what these runs say of it at their scale. Controls of the "
        "cause are beyond the paper.",
        conclusive=conclusive,
    )
    yield from _history_sections(groups, by_group)
    yield from _overload_sections(groups)
    yield Section(
        "Perplexity",
        "Mean evaluation loss over seeds with Student's t interval. Changes are against the "
        "baseline of the same group and the same seeds.",
        [Rows(f"perplexity_{g.name}", g.title, perplexity_table(g)) for g in groups],
    )
    yield from entropy_sections(
        groups,
        [entropy_table(group) for group in groups],
        " Published shares refer to the published M of 3.87 nats; those of the early half are "
        "computed from the published heatmaps.",
    )
    yield from cause_sections(groups)


def _overload_sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    blocks: list[Block] = []
    for group in groups:
        table = departure_table(group, list(_COMPARED))
        if len(table.columns) < 1 + 4 * len(_COMPARED):  # a variant without entropies
            continue
        model = next(iter(group)).entry.config.model
        picture = overload_picture(group, _COMPARED, causal_entropy_ceiling(model.context_length))
        blocks.append(Pictures(f"overload_{group.name}", group.title, picture, [picture]))
        whole = layers_through_training(group, _COMPARED)
        name = f"early_layers_{group.name}"
        blocks.append(Pictures(name, f"{group.title}: through training.", whole, [whole]))
        blocks.append(Rows(f"departures_{group.name}", group.title, table))
    if blocks:
        yield Section(
            "When layers leave uniform attention",
            "Norm-free ReLU and GELU: head entropies at the last probe as means over seeds, the "
            "entropy of each layer with a band from the lowest seed to the highest, and the step "
            "from which the mean entropy of a layer stays below 3/4 of M until the end.",
            blocks,
        )


def judge_groups(claims: Sequence[Sequence[Claim]]) -> list[list[Verdict]]:
    """The verdicts on the claims of each group; all of them are corrected for as one family."""
    judged = iter(judge_together([claim for of_group in claims for claim in of_group]))
    return [list(itertools.islice(judged, len(of_group))) for of_group in claims]


def verdict_section(
    groups: Sequence[GroupResults],
    by_group: Sequence[Sequence[Verdict]],
    lead: str,
    *,
    conclusive: bool = True,
) -> Section:
    """The verdicts of each group, and how many claims are judged and stand.

    Args:
      groups: the groups of a grid.
      by_group: what `judge_groups` found of each.
      lead: the first sentences of the section.
      conclusive: whether the runs are long enough for verdicts to mean anything.
    """
    text = f"{lead} {summary([verdict for verdicts in by_group for verdict in verdicts])}"
    return Section(
        "Verdicts",
        text if conclusive else f"{text} {INCONCLUSIVE}",
        [
            Rows(f"verdicts_{group.name}", group.title, verdict_table(verdicts))
            for group, verdicts in zip(groups, by_group, strict=True)
            if verdicts
        ],
    )


def _history_sections(
    groups: Sequence[GroupResults], by_group: Sequence[Sequence[Verdict]]
) -> Iterator[Section]:
    blocks: list[Block] = []
    for group, verdicts in zip(groups, by_group, strict=True):
        drawn = [found for found in verdicts if len(found.trajectory) >= _FEWEST_POINTS]
        if drawn:
            name = f"effects_{group.name}"
            whole = effects_through_training(drawn)
            panels = [effects_through_training([found]) for found in drawn]
            table = trajectory_table(drawn)
            blocks.append(Pictures(name, group.title, whole, panels, table=table))
    if blocks:
        yield Section(
            "Effects through training",
            "The effect of each claim, positive if as claimed, with its 95% interval over seeds, "
            "which needs two seeds. M is that of the last probe. The CSV has the numbers.",
            blocks,
        )
