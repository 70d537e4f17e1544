"""What a report shows of some runs, section by section."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any

from nfllm.report.entropy_sections import entropy_sections
from nfllm.report.nonfinite_sections import nonfinite_sections
from nfllm.report.page import Block, Markup, Rows, Section, details_html, list_html, table_html
from nfllm.report.reference import Published, Reference
from nfllm.report.runs import Run, notation
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
    signal_sections,
    slope_sections,
    spectrum_sections,
)

_BASELINE = "SM+LN+G"  # the usual decoder
_MOST_WARNINGS = 12


def build_sections(runs: Sequence[Run], reference: Reference | None = None) -> list[Section]:
    """Every section that the runs have data for, in the order of the page."""
    return [
        *_warning_sections(runs),
        *_result_sections(runs, reference),
        *_difference_sections(runs),
        *figure_sections(runs, reference),
        *_record_sections(runs),
    ]


def figure_sections(runs: Sequence[Run], reference: Reference | None = None) -> Iterator[Section]:
    """Entropy, losses, signal, spectra, slopes and non-finite values, as far as recorded."""
    yield from entropy_sections(runs, reference)
    for make in (
        loss_sections,
        signal_sections,
        spectrum_sections,
        slope_sections,
        nonfinite_sections,
    ):
        yield from make(runs)


def _warning_sections(runs: Sequence[Run]) -> Iterator[Section]:
    items = []
    for run in runs:
        shown, rest = run.warnings[:_MOST_WARNINGS], run.warnings[_MOST_WARNINGS:]
        items += [f"<b>{html.escape(run.label)}</b>: {html.escape(text)}" for text in shown]
        if rest:
            items.append(f"<b>{html.escape(run.label)}</b>: and {len(rest)} more like these")
    if items:
        content = "".join(f"<li>{item}</li>" for item in items)
        yield Section("What could not be read", "", [Markup(f"<ul class=warnings>{content}</ul>")])


def _result_sections(runs: Sequence[Run], reference: Reference | None) -> Iterator[Section]:
    named = {run.label: notation(run.model) for run in runs if run.model is not None}
    usual = _BASELINE if reference is None else reference.baseline
    baseline = next((label for label, name in named.items() if name == usual), None)
    if baseline is None and len(runs) > 1:
        baseline = next(iter(named), None)
    published_baseline = usual if baseline is None else named[baseline]
    results = [_result(run, published_baseline, reference) for run in runs]
    lead = (
        "Perplexity is exp(mean loss) over the validation split. SM is softmax attention, LN "
        "LayerNorm in every block, G GELU, R ReLU; what a name lacks, the model lacks. What "
        "its parts declare: norm-free; frozen, by statistics measured before; or normalised, by "
        "those of each token."
    )
    if len(runs) == 1:
        baseline = None
    else:
        lead += (
            " Runs on other data, or more or less of it, with another tokenizer or context length "
            "than the baseline have no change against it, since perplexities do not compare there."
        )
    if reference is not None and any(_published(run, reference) for run in runs):
        lead += f" {reference.source}"
    blocks = [
        Rows("perplexity", "", perplexity_table(results, baseline, published_baseline)),
        *_seed_blocks(runs),
    ]
    yield Section("Result", lead, blocks)


def _result(run: Run, published_baseline: str, reference: Reference | None) -> Result:
    config = None if run.record is None else run.record.config
    steps = f"{run.step:,}" if config is None else f"{run.step:,} of {config.training.steps:,}"
    tokens = run.last("tokens")
    published = _published(run, reference)
    compared = None
    if reference is not None and run.model is not None:
        compared = reference.find(run.model, published_baseline)
    perplexity = None if published is None else published.perplexity
    return Result(
        label=run.label,
        statistics=None if run.model is None else run.model.statistics,
        progress=steps if run.status == "finished" else f"{steps}, {run.status}",
        num_parameters=None if run.record is None else run.record.num_parameters,
        tokens=None if tokens is None else int(tokens),
        eval_loss=run.last("eval_loss_nats"),
        perplexity=run.last("eval_perplexity"),
        comparable=(*_data(run), tokens),
        published_perplexity=perplexity,
        published_change=percent_change(perplexity, compared and compared.perplexity),
    )


def _seed_blocks(runs: Sequence[Run]) -> Iterator[Rows]:
    """The mean over seeds, where finished runs differ in nothing but their seed."""
    variants: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        has_ended = run.status == "finished" and run.last("eval_loss_nats") is not None
        if run.record is not None and has_ended:
            training = dataclasses.replace(run.record.config.training, seed=0)
            config = dataclasses.replace(run.record.config, training=training)
            variants.setdefault((config, *_data(run)), []).append(run)
    losses = {}
    for (config, *_), members in variants.items():
        name = notation(config.model)
        label = members[0].label if name in losses else name
        losses[label] = [run.last("eval_loss_nats") for run in members]
    if any(len(values) > 1 for values in losses.values()):
        yield Rows("seeds", "Mean over seeds, with Student's t interval.", seeds_table(losses))


def _data(run: Run) -> tuple[Any, ...]:
    """What two runs must share for their perplexities to be comparable; empty where unknown."""
    if run.record is None:
        return ()
    record = run.record
    return record.data_fingerprint, record.vocab_size, record.config.model.context_length


def _published(run: Run, reference: Reference | None) -> Published | None:
    if reference is None or run.model is None:
        return None
    return reference.find(run.model, notation(run.model))


def _difference_sections(runs: Sequence[Run]) -> Iterator[Section]:
    configs = {run.label: run.record.config for run in runs if run.record is not None}
    if len(configs) > 1:
        table = differences_table(configs)
        if table.rows:
            lead = "Every configuration key in which these runs differ."
            yield Section("Differences", lead, [Rows("differences", "", table)])


def _record_sections(runs: Sequence[Run]) -> Iterator[Section]:
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
