"""The evidence for claims of a paper: measured quantities by variant, seed and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nfllm.experiment.measured import GroupResults
from nfllm.papers.published import find_published
from nfllm.papers.verdicts import Divergence, Evidence
from nfllm.report.reference import Published
from nfllm.report.runs import notation
from nfllm.rundir.perplexity import perplexity_change


def through_training(
    group: GroupResults,
    variants: tuple[str, ...],
    field: str,
    evidence: Callable[[Any], Evidence | None],
) -> list[tuple[int, Evidence]]:
    """The evidence at every step at which all finished runs of the variants recorded `field`."""
    series = {variant: group.series(variant, field) for variant in variants}
    found = []
    for step in common_steps(series):
        at_step = {v: {seed: values[step] for seed, values in s.items()} for v, s in series.items()}
        if (judged := evidence(at_step)) is not None:
            found.append((step, judged))
    return found


def common_steps(series: Mapping[str, Mapping[int, Mapping[int, np.ndarray]]]) -> list[int]:
    """The steps that all runs of `{variant: {seed: {step: value}}}` have, in order."""
    steps = [set(values) for seeds in series.values() for values in seeds.values()]
    return sorted(set.intersection(*steps)) if steps else []


def divergence_of(
    group: GroupResults,
    *,
    supports: tuple[str, ...],
    opposes: tuple[str, ...],
    of_heads: bool = False,
) -> Divergence:
    """Seeds of these variants that diverged; one that did in all of several counts for no side.

    For a claim `of_heads`, seeds with a head entropy that is not finite count as well.
    """
    names = dict.fromkeys((*supports, *opposes))
    lost = {name: group.without_entropies(name) if of_heads else set() for name in names}
    found = {name: group.diverged(name) | lost[name] for name in names}
    everywhere = set.intersection(*found.values()) if len(found) > 1 else set()
    text = ", ".join(
        f"{len(seeds)} of {len(group.variants[name])} seeds of {name}"
        for name, seeds in found.items()
        if seeds
    )
    what = "diverged, or with heads that are not finite" if any(lost.values()) else "diverged"
    return Divergence(
        sum(len(found[name] - everywhere) for name in supports),
        sum(len(found[name] - everywhere) for name in opposes),
        f"{what}: {text}" if text else "",
    )


def run_cost(group: GroupResults, *variants: str) -> tuple[int, float | None]:
    """Tokens, and hours if the speed is known, that one more seed of each variant takes."""
    tokens, seconds = 0, 0.0
    for variant in variants:
        runs = list(group.variants[variant].values())
        tokens += runs[0].entry.tokens
        speeds = [s for r in runs if r.run is not None and (s := r.run.last("tokens_per_second"))]
        seconds += runs[0].entry.tokens / float(np.median(speeds)) if speeds else math.nan
    return tokens, None if math.isnan(seconds) else seconds / 3600


def has_all(group: GroupResults, *variants: str) -> bool:
    """Whether the group has these variants, finished or not."""
    return all(variant in group.variants for variant in variants)


def published_of(group: GroupResults, variant: str) -> Published | None:
    """What was published for a variant's model; None if nothing was."""
    runs = group.variants.get(variant, {})
    config = next((run.entry.config for run in runs.values()), None)
    return None if config is None else find_published(config.model, notation(config))


def percent(nats: float) -> str:
    """A difference of losses as a change of perplexity in percent, as text."""
    return f"{perplexity_change(nats):+.1f}%"


def points(share: float) -> str:
    """A share in percent, as text."""
    return f"{100 * share:.0f}%"


def interval_text(low: str, high: str, seeds: int) -> str:
    """The 95% interval over seeds in words, from its bounds as text."""
    if seeds < 2:
        return "one seed"
    return f"95% interval {low} to {high} over {seeds} seeds"
