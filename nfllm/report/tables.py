"""The tables of a report: numbers in, rows out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nfllm.analysis.intervals import seed_interval
from nfllm.analysis.numerics import Onset
from nfllm.rundir import RunRecord
from nfllm.rundir.perplexity import perplexity

Cell = str | int | float | None


class Column(NamedTuple):
    """A column's title, and the format of its numbers on the page."""

    title: str
    form: str = ""


class Table(NamedTuple):
    """Rows of cells; None is a missing value."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """The table as comma-separated values, numbers in full precision."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        writer.writerows(self.rows)
        return file.getvalue()


class Result(NamedTuple):
    """How one run ended. Losses are in nats.

    Perplexities compare only between runs of equal `comparable`: the hash of corpus, tokenizer and
    split, the context length, and the number of tokens trained on. `statistics` is whether the
    model is norm-free, frozen or normalised.
    """

    label: str
    statistics: str | None
    progress: str
    num_parameters: int | None
    tokens: int | None
    eval_loss: float | None
    perplexity: float | None
    comparable: tuple[Any, ...]
    published_perplexity: float | None
    published_change: float | None


class HeadSummary(NamedTuple):
    """Entropy of one run's heads in nats; shares are in percent of the heads of that half.

    A model of one layer has no early half.
    """

    label: str
    mean_entropy: float
    ceiling: float | None
    maximum: float
    early_overload: float | None
    late_overload: float
    collapse: float
    num_not_finite: int


class NonFinite(NamedTuple):
    """What one run recorded of values that are not finite.

    `onset` is None if all were finite; `in_training` is whether a training step showed it rather
    than a probe.
    """

    onset: Onset | None
    in_training: bool
    num_probes: int


def format_cell(value: Cell, form: str) -> str:
    """`value` as the page shows it: a dash for None, NaN and ∞ for values that are not finite."""
    if value is None:
        return "–"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if isinstance(value, str):
        return value
    return format(value, form).replace("-", "−")


def percent_change(value: float | None, baseline: float | None) -> float | None:
    """100 (value / baseline - 1); None if either is missing or the baseline is not positive."""
    if value is None or baseline is None or not baseline > 0:
        return None
    return 100 * (value / baseline - 1)


def perplexity_table(
    results: Sequence[Result], baseline: str | None, published_baseline: str
) -> Table:
    """Perplexity of each run and its change in percent, beside the published ones.

    Args:
      results: one per run. The published columns appear if any has a published counterpart.
      baseline: label of the run that changes refer to; None for no changes. A run has a change only
        if it shares the baseline's `comparable`.
      published_baseline: the paper's name of the model that published changes refer to.
    """
    reference = next((result for result in results if result.label == baseline), None)
    columns = [
        Column("run"),
        Column("normalization"),
        Column("steps"),
        Column("parameters", ",d"),
        Column("tokens", ",d"),
        Column("eval loss (nats)", ".4f"),
        Column("perplexity", ".2f"),
    ]
    published = any(result.published_perplexity is not None for result in results)
    if reference is not None:
        columns.append(Column(f"change against {baseline} (%)", "+.1f"))
    if published:
        columns += [
            Column("published perplexity", ".3f"),
            Column(f"published change against {published_baseline} (%)", "+.1f"),
        ]
    rows = []
    for result in results:
        row: list[Cell] = list(result[:7])
        if reference is not None:
            change = percent_change(result.perplexity, reference.perplexity)
            row.append(change if result.comparable == reference.comparable else None)
        if published:
            row += [result.published_perplexity, result.published_change]
        rows.append(tuple(row))
    return Table(tuple(columns), tuple(rows))


def seeds_table(losses: Mapping[str, Sequence[float]]) -> Table:
    """Mean evaluation loss of each variant over its seeds, with its 95% interval (Student's t).

    Args:
      losses: final evaluation losses in nats, one a seed, by the variant's label.
    """
    columns = (
        Column("variant"),
        Column("seeds", "d"),
        Column("mean eval loss (nats)", ".4f"),
        Column("95% from", ".4f"),
        Column("95% to", ".4f"),
        Column("perplexity at the mean", ".2f"),
    )
    rows = []
    for label, values in losses.items():
        mean, low, high = map(float, seed_interval(values))
        rows.append((label, len(values), mean, low, high, perplexity(mean)))
    return Table(columns, tuple(rows))


def heads_table(heads: Sequence[HeadSummary]) -> Table:
    """Mean entropy and overload of each run's heads, by depth."""
    columns = (
        Column("run"),
        Column("mean entropy (nats)", ".3f"),
        Column("ceiling (nats)", ".3f"),
        Column("M (nats)", ".3f"),
        Column("heads ≥ 3M/4, early half (%)", ".0f"),
        Column("heads ≥ 3M/4, late half (%)", ".0f"),
        Column("heads < M/4 (%)", ".0f"),
        Column("heads not finite", ",d"),
    )
    return Table(columns, tuple(tuple(head) for head in heads))


def entropy_table(labels: Sequence[str], entropies: Sequence[np.ndarray]) -> Table:
    """Entropy of every head, one row each."""
    columns = (
        Column("run"),
        Column("layer", "d"),
        Column("head", "d"),
        Column("entropy (nats)", ".4f"),
    )
    rows = tuple(
        (label, layer, head, float(value))
        for label, entropy_LH in zip(labels, entropies, strict=True)
        for (layer, head), value in np.ndenumerate(entropy_LH)
    )
    return Table(columns, rows)


def participation_table(
    ratios: Mapping[str, Sequence[np.ndarray | None]], widths: Mapping[str, int]
) -> Table:
    """Participation ratios of the MLP's units, one row a layer.

    Args:
      ratios: of each run, `[L]` before and `[L]` after the activation; None where not recorded.
      widths: of each run's MLP, where it is known.
    """
    columns = (
        Column("run"),
        Column("layer", "d"),
        Column("before the activation", ".1f"),
        Column("after the activation", ".1f"),
        Column("units", ",d"),
    )
    rows: list[tuple[Cell, ...]] = []
    for label, sides in ratios.items():
        for layer in range(max(0 if side is None else len(side) for side in sides)):
            values = [None if side is None else float(side[layer]) for side in sides]
            rows.append((label, layer, *values, widths.get(label)))
    return Table(columns, tuple(rows))


def differences_table(records: Mapping[str, RunRecord]) -> Table:
    """The config keys in which runs differ, one column per run; a dash where a key is not known."""
    settings = {label: _settings(record) for label, record in records.items()}
    keys = sorted({key for known in settings.values() for key in known})
    rows = []
    for key in keys:
        cells = [known.get(key) for known in settings.values()]
        if len({cell for cell in cells if cell is not None}) > 1:
            rows.append((key, *cells))
    return Table((Column("key"), *map(Column, records)), tuple(rows))


def first_nonfinite_table(found: Mapping[str, NonFinite | None]) -> Table:
    """Where values that are not finite were first seen in each run; None: nothing was recorded."""
    columns = (
        Column("run"),
        Column("first at step", ",d"),
        Column("seen in"),
        Column("site"),
        Column("layer", "d"),
        Column("values", ",d"),
    )
    rows: list[tuple[Cell, ...]] = []
    for label, item in found.items():
        if item is None:
            rows.append((label, None, None, "not recorded", None, None))
        elif item.onset is None:
            rows.append((label, None, None, f"none in {item.num_probes} probes", None, 0))
        else:
            step, site = item.onset[:2]
            place = "training" if item.in_training else "probe"
            values = site.nan + site.positive_inf + site.negative_inf
            rows.append((label, step, place, site.site, site.layer, values))
    return Table(columns, tuple(rows))


def growth_table(found: Mapping[str, NonFinite | None], most: int) -> Table:
    """Sizes of logits and residual stream in each run's last `most` probes before the onset."""
    columns = (
        Column("run"),
        Column("step", ",d"),
        Column("largest |attention logit|", ".4g"),
        Column("largest |residual|", ".4g"),
    )
    rows: list[tuple[Cell, ...]] = []
    for label, item in found.items():
        if item is not None and item.onset is not None:
            _, _, *before = item.onset
            for step, logit, residual in list(zip(*before, strict=True))[-most:]:
                sizes = [None if np.isnan(size) else float(size) for size in (logit, residual)]
                rows.append((label, step, *sizes))
    return Table(columns, tuple(rows))


def _settings(record: RunRecord) -> dict[str, str]:
    """The keys of a run, as `section.key`; of an imported model those of `model`."""
    sections = record.config.to_dict()
    known = {"model": sections["model"]} if record.is_imported else sections
    return {
        f"{section}.{key}": str(value)
        for section, keys in known.items()
        for key, value in keys.items()
    }
