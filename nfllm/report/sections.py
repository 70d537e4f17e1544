"""The sections of a report."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from nfllm.config.recipes import recipe_note
from nfllm.config.removal import model_at_end
from nfllm.report.entropy_sections import entropy_sections
from nfllm.report.nonfinite_sections import nonfinite_sections
from nfllm.report.page import Block, Markup, Rows, Section, details_html, list_html, table_html
from nfllm.report.reference import Published, Reference
from nfllm.report.regularizer_sections import regularizer_sections
from nfllm.report.removal_sections import frozen_sections, mark_removals, removal_sections
from nfllm.report.runs import BASELINE, ReportedRun
from nfllm.report.seeds import SeedGroup, data_of, seed_groups
from nfllm.report.tables import (
    Column,
    Result,
    Table,
    differences_table,
    percent_change,
    perplexity_table,
    seeds_table,
)
from nfllm.report.training_sections import (
    loss_sections,
    saturation_sections,
    signal_sections,
    slope_sections,
    spectrum_sections,
)

_MOST_WARNINGS = 12


def build_sections(
    runs: Sequence[ReportedRun],
    reference: Reference | None = None,
    requested: Sequence[Section] = (),
) -> list[Section]:
    """Every section that the runs have data for, in the order of the page.

    `requested` are sections made on request, which come after the differences of the runs.
    """
    sections = [
        *_warning_sections(runs),
        *_result_sections(runs, reference),
        *_difference_sections(runs),
        *requested,
        *figure_sections(runs, reference),
        *_record_sections(runs),
    ]
    return mark_removals(sections, runs)


def figure_sections(
    runs: Sequence[ReportedRun],
    reference: Reference | None = None,
    groups: Sequence[SeedGroup] | None = None,
) -> Iterator[Section]:
    """Entropy, losses, signal, spectra, what is learned, and non-finite values, as far as recorded.

    Losses are drawn for `groups`, by default the seed groups of `runs`.
    """
    yield from entropy_sections(runs, reference)
    yield from loss_sections(seed_groups(runs) if groups is None else groups)
    for make in (
        signal_sections,
        spectrum_sections,
        slope_sections,
        saturation_sections,
        regularizer_sections,
        removal_sections,
        frozen_sections,
        nonfinite_sections,
    ):
        yield from make(runs)


def _warning_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    items = []
    for run in runs:
        shown, rest = run.warnings[:_MOST_WARNINGS], run.warnings[_MOST_WARNINGS:]
        items += [f"<b>{html.escape(run.label)}</b>: {html.escape(text)}" for text in shown]
        if rest:
            items.append(f"<b>{html.escape(run.label)}</b>: {len(rest)} more warnings")
    if items:
        content = "".join(f"<li>{item}</li>" for item in items)
        yield Section("What could not be read", "", [Markup(f"<ul class=warnings>{content}</ul>")])


def _result_sections(runs: Sequence[ReportedRun], reference: Reference | None) -> Iterator[Section]:
    named = {run.label: run.notation for run in runs if run.notation}
    usual = BASELINE if reference is None else reference.baseline
    baseline = next((label for label, name in named.items() if name == usual), None)
    if baseline is None and len(runs) > 1:
        baseline = next(iter(named), None)
    published_baseline = usual if baseline is None else named[baseline]
    results = [_result(run, published_baseline, reference) for run in runs]
    lead = (
        "Perplexity is exp(mean loss) over the validation split. SM is softmax attention, LN "
        "LayerNorm in every block, G GELU, R ReLU; a part that is not in the name is not in the "
        "model. A model is normalised if it divides by statistics of each token, frozen if by "
        "statistics measured earlier, and norm-free if by neither."
    )
    if len(runs) == 1:
        baseline = None
    else:
        lead += (
            " A run has no change against the baseline if it differs from it in its data, number "
            "of tokens, tokenizer or context length, since such perplexities are not comparable."
        )
    for run in runs:
        if run.record is not None and (note := recipe_note(run.record.config)):
            lead += f" {run.label}: {note}."
    if reference is not None and any(_published(run, reference) for run in runs):
        lead += f" {reference.source}"
    blocks = [
        Rows("perplexity", "", perplexity_table(results, baseline, published_baseline)),
        *_seed_blocks(runs),
    ]
    yield Section("Result", lead, blocks)


def _result(run: ReportedRun, published_baseline: str, reference: Reference | None) -> Result:
    steps = f"{run.step:,}"
    if run.record is not None and not run.record.is_imported:
        steps += f" of {run.record.config.training.steps:,}"
    tokens = run.last("tokens")
    published = _published(run, reference)
    compared = None
    if reference is not None and run.model is not None:
        compared = reference.find(run.model, published_baseline)
    perplexity = None if published is None else published.perplexity
    return Result(
        label=run.label,
        statistics=None if run.record is None else model_at_end(run.record.config).statistics,
        progress=steps if run.status == "finished" else f"{steps}, {run.status}",
        num_parameters=None if run.record is None else run.record.num_parameters,
        tokens=None if tokens is None else int(tokens),
        eval_loss=run.last("eval_loss_nats"),
        perplexity=run.last("eval_perplexity"),
        comparable=(*data_of(run), tokens),
        published_perplexity=perplexity,
        published_change=percent_change(perplexity, compared and compared.perplexity),
    )


def _seed_blocks(runs: Sequence[ReportedRun]) -> Iterator[Rows]:
    """The mean over seeds, if finished runs differ only in their seed."""
    losses = {
        group.label: [run.last("eval_loss_nats") for run in group.runs]
        for group in seed_groups(runs)
        if all(run.status == "finished" for run in group.runs)
    }
    losses = {label: values for label, values in losses.items() if None not in values}
    if any(len(values) > 1 for values in losses.values()):
        yield Rows("seeds", "Mean over seeds, with Student's t interval.", seeds_table(losses))


def _published(run: ReportedRun, reference: Reference | None) -> Published | None:
    if reference is None or run.model is None:
        return None
    return reference.find(run.model, run.notation)


def _difference_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    records = {run.label: run.record for run in runs if run.record is not None}
    if len(records) > 1:
        table = differences_table(records)
        if table.rows:
            lead = "Every configuration key in which these runs differ."
            yield Section("Differences", lead, [Rows("differences", "", table)])


def _record_sections(runs: Sequence[ReportedRun]) -> Iterator[Section]:
    blocks: list[Block] = []
    for run in runs:
        parts = []
        events = [
            f"step {row['step']:,}: {row.get('event', '')} {row.get('message', '')}".strip()
            for row in run.metrics.rows["event"]
        ]
        if events:
            parts.append(details_html(f"Events ({len(events)})", list_html(events)))
        if run.record is not None:
            values = run.record.config.to_dict()
            rows = tuple(
                (f"{section}.{key}", str(value))
                for section, keys in values.items()
                for key, value in keys.items()
            )
            parts.append(_folded("Configuration", rows))
        if run.record is not None and run.record.origin is not None:
            parts.append(f"<p>{html.escape(f'Started from {run.record.origin}.')}</p>")
        if run.corpus:
            parts.append(_folded("Corpus", tuple(run.corpus.items())))
        if run.record is not None:
            facts = (
                f"nfllm {run.record.nfllm_version}, data fingerprint "
                f"{run.record.data_fingerprint}, vocabulary of {run.record.vocab_size:,} tokens."
            )
            parts.append(f"<p>{html.escape(facts)}</p>")
        title = run.label if run.label.endswith(run.name) else f"{run.label} · {run.name}"
        blocks.append(Markup(f"<h3>{html.escape(title)}</h3>\n" + "\n".join(parts)))
    yield Section("Runs", "", blocks)


def _folded(summary: str, rows: tuple[tuple[str, str], ...]) -> str:
    return details_html(summary, table_html(Table((Column("key"), Column("value")), rows)))
