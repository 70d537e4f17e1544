"""Sections of the page of a grid: its runs compared by the keys in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nfllm.config.recipes import recipe_note
from nfllm.experiment.measured import GroupResults, Measured
from nfllm.experiment.tables import (
    cause_by_layer_table,
    cause_table,
    comparison_table,
    entropy_table,
    varying_keys,
)
from nfllm.report.page import Block, Rows, Section
from nfllm.report.tables import Table

_OTHER_TARGETS = ("data.", "evaluation.max_windows", "model.context_length")


def comparison_sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    """Losses, the best run, head entropies and linear replacements, as far as measured."""
    yield Section(
        "Comparison",
        "Mean evaluation loss over seeds with Student's t interval, and the keys in which the "
        "variants differ. "
        + " ".join(_best(group, len(groups) > 1) for group in groups)
        + "".join(_recipes(groups)),
        [Rows(f"comparison_{g.name}", g.title, comparison_table(g)) for g in groups],
    )
    yield from entropy_sections(groups, [entropy_table(group) for group in groups])
    yield from cause_sections(groups)


def entropy_sections(
    groups: Sequence[GroupResults], tables: Sequence[Table], more: str = ""
) -> Iterator[Section]:
    """The section with one table of head entropies for each group; none if all are empty.

    `more` is text added to its lead.
    """
    blocks: list[Block] = []
    left_out = ""
    for group, table in zip(groups, tables, strict=True):
        if table.rows and "model.context_length" in varying_keys(group):
            left_out += f" Left out for {group.title}: with the context length M differs."
        elif table.rows:
            caption = f"{group.title}; M = {group.maximum:.3f} nats"
            blocks.append(Rows(f"heads_of_{group.name}", caption, table))
    entries = [run.entry for group in groups for run in group]
    without = {e.variant for e in entries if not e.config.model.has_attention_maps}
    if without:
        named = ", ".join(sorted(without))
        more += f" Not defined for {named}: their mixer has no softmax."
    if blocks or without or left_out:
        yield Section(
            "Overloaded heads",
            "Shares of heads at the last probe; M is the largest head entropy of the group."
            + more
            + left_out,
            blocks,
        )


def cause_sections(groups: Sequence[GroupResults]) -> Iterator[Section]:
    """How the loss rises with linear activations, for groups where it was measured."""
    causes: list[Block] = []
    for group in groups:
        if (table := cause_table(group)).rows:
            causes.append(Rows(f"cause_{group.name}", group.title, table))
            by_layer = cause_by_layer_table(group)
            causes.append(Rows(f"by_layer_cause_{group.name}", "By layer.", by_layer, shown=False))
    if causes:
        yield Section(
            "How linear the MLPs are",
            "Rise of the evaluation loss when the activations of a half of the layers, or of all, "
            "are replaced by their best linear fits. A layer that loses nothing is linear.",
            causes,
        )


def _recipes(groups: Sequence[GroupResults]) -> Iterator[str]:
    """What each variant with a published recipe has of it, after a space."""
    entries = [run.entry for group in groups for run in group]
    notes = {e.variant: note for e in entries if (note := recipe_note(e.config))}
    for variant, note in notes.items():
        yield f" {variant}: {note}."


def _best(group: GroupResults, many: bool) -> str:
    where = f" of {group.title}" if many else ""
    if other := [key for key in varying_keys(group) if key.startswith(_OTHER_TARGETS)]:
        return (
            f"No best run{where} is named: the runs differ in {', '.join(other)}, so their losses "
            "are not comparable."
        )
    finished: list[tuple[float, Measured]] = [
        (run.loss, run) for run in group if run.loss is not None
    ]
    if not finished:
        return f"No run{where} has finished."
    loss, best = min(finished, key=lambda pair: pair[0])
    return f"The best run{where} is {best.entry.name}, with {loss:.4f} nats."
