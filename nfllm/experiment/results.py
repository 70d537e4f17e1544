"""RESULTS.md: the results of an experiment, as a file for a repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nfllm.analysis import causal_entropy_ceiling
from nfllm.experiment.grid import Entry, Experiment
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.provenance import Provenance
from nfllm.experiment.tables import shown_runs
from nfllm.report.page import Rows, Section
from nfllm.report.tables import Table, format_cell
from nfllm.report.text import entropy_text

_MOST_MAPS = 4


def results_markdown(
    experiment: Experiment,
    groups: Sequence[GroupResults],
    sections: Sequence[Section],
    entries: Sequence[Entry],
    outcomes: Mapping[str, Outcome],
    starts: Sequence[Provenance],
) -> str:
    """The whole file: where it came from, the tables of the sections, and heatmaps as text."""
    lines = [_title(starts), "", experiment.note, "", *_provenance(entries, outcomes, starts)]
    lines += [*(line for group in groups for line in _shape(group)), ""]
    for section in sections:
        tables = [b for b in section.blocks if isinstance(b, Rows) and b.shown and b.table.rows]
        if tables:
            lines += [f"## {section.title}", "", section.lead, ""]
        for block in tables:
            lines += [f"### {block.caption}", ""] if block.caption else []
            lines += [*markdown_table(block.table), ""]
    maps = list(_heatmaps(groups[0]))
    if maps:
        lines += [f"## Head entropies: {groups[0].title}", "", *maps]
    return "\n".join(lines).rstrip() + "\n"


def _title(starts: Sequence[Provenance]) -> str:
    if not starts or not starts[-1].grid:
        return "# Results"
    return f"# Results of {starts[-1].grid}, scale {starts[-1].scale}"


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of a table; numbers are aligned to the right."""
    yield "| " + " | ".join(_escaped(column.title) for column in table.columns) + " |"
    yield "|" + "|".join("--:" if column.form else "---" for column in table.columns) + "|"
    for row in table.rows:
        cells = [format_cell(v, c.form) for v, c in zip(row, table.columns, strict=True)]
        yield "| " + " | ".join(map(_escaped, cells)) + " |"


def _provenance(
    entries: Sequence[Entry], outcomes: Mapping[str, Outcome], starts: Sequence[Provenance]
) -> Iterator[str]:
    own = [entry for entry in entries if entry.same_as is None]
    ended = [e for e in own if outcomes[e.name].status in ("finished", "diverged")]
    tokens = sum(entry.tokens for entry in own if outcomes[entry.name].status == "finished")
    yield (
        f"{len(ended)} of {len(own)} runs have ended; the finished ones trained on "
        f"{tokens / 1e6:,.1f} M tokens."
    )
    yield ""
    if starts:
        last = starts[-1]
        seconds = sum(start.seconds for start in starts)
        number = f", in {len(starts)} starts" if len(starts) > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
        commits = dict.fromkeys(start.commit or "unknown" for start in starts)
        yield f"- Command: `{last.command} --out DIR`"
        if last.grid_sha256:
            yield f"- Grid: {last.grid}, sha256 {last.grid_sha256}"
        yield f"- Hardware: {last.device}; {last.slots} runs at a time"
        yield f"- Wall time: {seconds / 60:,.0f} minutes{number}, until {last.date}"
        yield f"- Versions: {versions}"
        yield f"- Commit: {', '.join(commits)}"


def _shape(group: GroupResults) -> Iterator[str]:
    first = next(iter(group), None)
    if first is None:
        return
    config, run = first.entry.config, first.run
    model, training = config.model, config.training
    record = None if run is None else run.record
    parameters = "" if record is None else f", {record.num_parameters:,} parameters"
    vocabulary = "" if record is None else f", vocabulary {record.vocab_size:,}"
    yield (
        f"- {group.title}: {model.architecture}, {model.num_layers} layers, {model.num_heads} "
        f"heads, width {model.embed_dim}, {model.context_length} tokens{vocabulary}{parameters} "
        f"({first.entry.variant}); block matrices start at std {model.block_init_std:.4g}; "
        f"{training.steps:,} steps of {training.batch_size} sequences, {first.entry.tokens:,} "
        f"tokens a run; data {config.data.dataset}"
    )


def _heatmaps(group: GroupResults) -> Iterator[str]:
    """One run of each of the first variants."""
    measured = [
        (run.entry, entropy) for run in shown_runs(group) if (entropy := run.entropy) is not None
    ]
    for entry, entropy_LH in measured[:_MOST_MAPS]:
        ceiling = causal_entropy_ceiling(entry.config.model.context_length)
        yield f"{entry.variant}, seed {entry.seed}, mean {np.mean(entropy_LH):.3f} nats:"
        yield ""
        yield "```"
        yield entropy_text(entropy_LH, ceiling)
        yield "```"
        yield ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
