"""RESULTS.md: what an experiment found, as a file for a repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nfllm.analysis import causal_entropy_ceiling
from nfllm.experiment.grid import Entry, Experiment
from nfllm.experiment.measured import GroupResults
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.provenance import Provenance
from nfllm.experiment.tables import (
    cause_table,
    entropy_table,
    perplexity_table,
    problem_table,
)
from nfllm.experiment.verdicts import INCONCLUSIVE, judge_claims
from nfllm.report.tables import Table, format_cell
from nfllm.report.text import entropy_text

_MAPS = ("sm+g", "sm+r", "sm+ln+g", "sm+ln+r")


def results_markdown(
    experiment: Experiment,
    groups: Sequence[GroupResults],
    entries: Sequence[Entry],
    outcomes: Mapping[str, Outcome],
    records: Sequence[Provenance],
) -> str:
    """The whole file: verdicts, tables, heatmaps as text, and where all of it came from."""
    lines = ["# Results", "", experiment.note, "", *_provenance(entries, outcomes, records)]
    main = groups[0]
    lines += ["## Verdicts", ""]
    if not experiment.conclusive:
        lines += [INCONCLUSIVE, ""]
    lines += [*_verdicts(main), ""]
    for group in groups:
        lines += [f"## {group.title}", "", *_shape(group)]
        if group is not main:
            lines += ["### Verdicts", "", *_verdicts(group), ""]
        lines += ["### Perplexity", "", *markdown_table(perplexity_table(group)), ""]
        heads = entropy_table(group)
        if heads.rows:
            lines += ["### Overloaded heads", ""]
            lines += [f"M = {group.maximum:.3f} nats, the largest head entropy of the group.", ""]
            lines += [*markdown_table(heads), ""]
        causes = cause_table(group)
        if causes.rows:
            lines += ["### Rise of the loss with linear activations", ""]
            lines += [*markdown_table(causes), ""]
    lines += [f"## Head entropies: {main.title}", "", *_heatmaps(main)]
    problems = problem_table(entries, outcomes)
    if problems.rows:
        lines += ["## Runs without a result of their own", "", *markdown_table(problems), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> Iterator[str]:
    """The lines of a table; numbers stand to the right."""
    yield "| " + " | ".join(_escaped(column.title) for column in table.columns) + " |"
    yield "|" + "|".join("--:" if column.form else "---" for column in table.columns) + "|"
    for row in table.rows:
        cells = [format_cell(v, c.form) for v, c in zip(row, table.columns, strict=True)]
        yield "| " + " | ".join(map(_escaped, cells)) + " |"


def _provenance(
    entries: Sequence[Entry], outcomes: Mapping[str, Outcome], records: Sequence[Provenance]
) -> Iterator[str]:
    own = [entry for entry in entries if entry.same_as is None]
    ended = [e for e in own if outcomes[e.name].status in ("finished", "diverged")]
    tokens = sum(entry.tokens for entry in own if outcomes[entry.name].status == "finished")
    yield (
        f"{len(ended)} of {len(own)} runs have ended; the finished ones trained on "
        f"{tokens / 1e6:,.1f} M tokens."
    )
    yield ""
    if records:
        last = records[-1]
        seconds = sum(record.seconds for record in records)
        starts = f", in {len(records)} starts" if len(records) > 1 else ""
        versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
        commits = dict.fromkeys(record.commit or "unknown" for record in records)
        yield f"- Command: `{last.command} --out DIR`"
        yield f"- Hardware: {last.device}; {last.slots} runs at a time"
        yield f"- Wall time: {seconds / 60:,.0f} minutes{starts}, until {last.date}"
        yield f"- Versions: {versions}"
        yield f"- Commit: {', '.join(commits)}"
        yield ""


def _verdicts(group: GroupResults) -> Iterator[str]:
    for verdict in judge_claims(group):
        published = f" (published: {verdict.published})" if verdict.published else ""
        judged = f"- **{verdict.claim}**{published}: **{verdict.judgement}**."
        yield f"{judged} {verdict.measured}".rstrip()


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
        f"{model.architecture}, {model.num_layers} layers, {model.num_heads} heads, width "
        f"{model.embed_dim}, {model.context_length} tokens{vocabulary}{parameters} "
        f"({first.entry.variant}); block matrices start at std {model.block_init_std:.4g}; "
        f"{training.steps:,} steps of {training.batch_size} sequences, {first.entry.tokens:,} "
        f"tokens a run; data {config.data.dataset}."
    )
    yield ""


def _heatmaps(group: GroupResults) -> Iterator[str]:
    for variant in _MAPS:
        entropies = group.entropies(variant)
        if not entropies:
            continue
        seed, entropy_LH = next(iter(entropies.items()))
        config = next(iter(group.variants[variant].values())).entry.config
        ceiling = causal_entropy_ceiling(config.model.context_length)
        yield f"{variant}, seed {seed}, mean {np.mean(entropy_LH):.3f} nats:"
        yield ""
        yield "```"
        yield entropy_text(entropy_LH, ceiling)
        yield "```"
        yield ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
