"""Writes the results of an experiment: one page with pictures, and RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from etils import epath

from nfllm.experiment.grid import Entry, Experiment
from nfllm.experiment.measured import GroupResults, read_group
from nfllm.experiment.outcome import Outcome
from nfllm.experiment.provenance import Provenance, read_provenance
from nfllm.experiment.results import results_markdown
from nfllm.experiment.sections import comparison_sections
from nfllm.experiment.tables import problem_table, shown_runs
from nfllm.report.page import Rows, Section
from nfllm.report.removal_sections import mark_removals
from nfllm.report.runs import ReportedRun, read_runs
from nfllm.report.sections import figure_sections
from nfllm.report.seeds import SeedGroup
from nfllm.report.write import write_page
from nfllm.rundir import REPORT_DIR

RESULTS_FILE = "RESULTS.md"


def write_results(
    experiment: Experiment, entries: Sequence[Entry], outcomes: Mapping[str, Outcome], out: Path
) -> tuple[epath.Path, Path]:
    """Writes the report and the results file in `out` and returns their paths.

    Runs that failed, diverged, are unfinished, or are duplicates are listed, with the reason.
    """
    groups = [
        read_group(name, group.title, [e for e in entries if e.group == name], outcomes, out)
        for name, group in experiment.groups.items()
    ]
    starts = read_provenance(out)
    sections = [
        *_problem_sections(entries, outcomes),
        *(experiment.sections or comparison_sections)(groups),
    ]
    whole = [*sections, *_figure_sections(experiment, groups[0], out)]
    page = write_page("Experiment", _lead(experiment, starts), whole, out / REPORT_DIR)
    results = out / RESULTS_FILE
    text = results_markdown(experiment, groups, sections, entries, outcomes, starts)
    results.write_text(text, encoding="utf-8")
    return page, results


def _problem_sections(
    entries: Sequence[Entry], outcomes: Mapping[str, Outcome]
) -> Iterator[Section]:
    problems = problem_table(entries, outcomes)
    if problems.rows:
        yield Section(
            "Runs without their own result",
            "That a run diverged is a result; the other runs are missing below.",
            [Rows("problems", "", problems)],
        )


def _figure_sections(experiment: Experiment, group: GroupResults, out: Path) -> Iterator[Section]:
    """Figures of one run of each variant, labelled by the variant; losses of all its seeds."""
    shown: dict[str, Entry] = {}
    for run in shown_runs(group):
        shown.setdefault(run.entry.same_as or run.entry.name, run.entry)
    if shown:
        labels = [entry.variant for entry in shown.values()]
        runs = read_runs([out / name for name in shown], labels)
        groups = [
            SeedGroup(run.label, place, _finished(group, run.label) or [run])
            for place, run in enumerate(runs)
        ]
        sections = [*figure_sections(runs, experiment.reference, groups)]
        yield from mark_removals(sections, runs)


def _finished(group: GroupResults, variant: str) -> list[ReportedRun]:
    measured = group.variants[variant].values()
    return [run for m in measured if (run := m.finished) is not None]


def _lead(experiment: Experiment, starts: Sequence[Provenance]) -> str:
    if not starts:
        return experiment.note
    last = starts[-1]
    return (
        f"{experiment.note} {last.command}; run on {last.device}; {last.date}; commit "
        f"{last.commit or 'unknown'}."
    )
