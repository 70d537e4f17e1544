"""Writes what an experiment found: one page with pictures, and RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from etils import epath

from nfllm.experiment.grid import Entry, Experiment
from nfllm.experiment.measured import GroupResults, read_group
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.provenance import Provenance, read_provenance
from nfllm.experiment.results import results_markdown
from nfllm.experiment.tables import (
    cause_by_layer_table,
    cause_table,
    entropy_table,
    perplexity_table,
    problem_table,
    shown_runs,
    verdict_table,
)
from nfllm.experiment.verdicts import INCONCLUSIVE, judge_claims
from nfllm.report.page import Block, Rows, Section
from nfllm.report.runs import read_runs
from nfllm.report.sections import figure_sections
from nfllm.report.write import write_page

REPORT_DIR = "report"
RESULTS_FILE = "RESULTS.md"


def write_results(
    experiment: Experiment, entries: Sequence[Entry], outcomes: Mapping[str, Outcome], out: Path
) -> tuple[epath.Path, Path]:
    """Writes the report and the results file in `out` and returns their paths.

    Runs that failed, diverged, are unfinished, or are a duplicate are named, with the reason.
    """
    groups = [
        read_group(name, group.title, [e for e in entries if e.group == name], outcomes, out)
        for name, group in experiment.groups.items()
    ]
    records = read_provenance(out)
    sections = list(_sections(experiment, groups, entries, outcomes, out))
    page = write_page("Experiment", _lead(experiment, records), sections, out / REPORT_DIR)
    results = out / RESULTS_FILE
    text = results_markdown(experiment, groups, entries, outcomes, records)
    results.write_text(text, encoding="utf-8")
    return page, results


def _sections(
    experiment: Experiment,
    groups: Sequence[GroupResults],
    entries: Sequence[Entry],
    outcomes: Mapping[str, Outcome],
    out: Path,
) -> Iterator[Section]:
    problems = problem_table(entries, outcomes)
    if problems.rows:
        yield Section(
            "Runs without a result of their own",
            "A run that diverged is a result; the others are missing below.",
            [Rows("problems", "", problems)],
        )
    yield Section(
        "Verdicts",
        "Each claim of the paper, and what these runs say of it at their scale. Controls of the "
        "cause are beyond the paper." + ("" if experiment.conclusive else f" {INCONCLUSIVE}"),
        [Rows(f"verdicts_{g.name}", g.title, verdict_table(judge_claims(g))) for g in groups],
    )
    yield Section(
        "Perplexity",
        "Mean evaluation loss over seeds with Student's t interval. Changes are against the "
        "baseline of the same group and the same seeds.",
        [Rows(f"perplexity_{g.name}", g.title, perplexity_table(g)) for g in groups],
    )
    yield Section(
        "Overloaded heads",
        "Shares of heads at the last probe; M is the largest head entropy of the group. Published "
        "shares refer to the published M of 3.87 nats.",
        [
            Rows(f"heads_{g.name}", _titled(g), table)
            for g in groups
            if (table := entropy_table(g)).rows
        ],
    )
    causes: list[Block] = []
    for group in groups:
        if (table := cause_table(group)).rows:
            causes.append(Rows(f"cause_{group.name}", group.title, table))
            by_layer = cause_by_layer_table(group)
            causes.append(Rows(f"cause_by_layer_{group.name}", "By layer.", by_layer, shown=False))
    if causes:
        yield Section(
            "How linear the MLPs are",
            "Rise of the evaluation loss when the activations of a half of the layers, or of all, "
            "are replaced by their best linear fits. A layer that loses nothing is linear.",
            causes,
        )
    shown = [run.entry for run in shown_runs(groups[0])]
    if not shown:
        return
    runs = read_runs(list(dict.fromkeys(out / (e.same_as or e.name) for e in shown)))
    yield from figure_sections(runs)


def _titled(group: GroupResults) -> str:
    return f"{group.title}; M = {group.maximum:.3f} nats"


def _lead(experiment: Experiment, records: Sequence[Provenance]) -> str:
    if not records:
        return experiment.note
    last = records[-1]
    return (
        f"{experiment.note} Run on {last.device}; {last.date}; commit {last.commit or 'unknown'}."
    )
