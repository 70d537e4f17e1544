"""Verdicts on claims: reproduced, smaller than published, not reproduced, or undecided.

Each claim is that some effect is positive. With the effect's 95% interval over seeds it is

- reproduced: the interval lies above zero, and the effect above a tolerance;
- smaller than published: the interval lies above zero and below the published size, and the effect
  within the tolerance;
- below the tolerance: the same, but the published size is in the interval or unknown;
- not reproduced: the whole interval lies below the tolerance;
- undecided: anything else, and always with one seed, whose spread is unknown.

A seed that diverged has no finite effect. It counts as support or contradiction of the claim, and a
verdict that it contradicts becomes undecided.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from nfllm.analysis.comparisons import holm, p_value
from nfllm.analysis.intervals import Interval

Judgement = Literal[
    "reproduced",
    "smaller than published",
    "below the tolerance",
    "not reproduced",
    "undecided at this scale",
    "not measured",
]
SIGNIFICANCE = 0.05

_MOST_SPANS = 6
_MOST_SEEDS = 200


class Evidence(NamedTuple):
    """An effect over seeds: its interval at any confidence, and what was measured in words.

    `is_student` is whether the interval widens with few seeds as Student's t does.
    """

    interval_at: Callable[[float], Interval]
    num_seeds: int
    text: str
    is_student: bool = True

    @property
    def interval(self) -> Interval:
        """The 95% interval; its bounds are NaN with one seed, whose spread is unknown."""
        return self.interval_at(0.95)


class Divergence(NamedTuple):
    """Seeds without a finite effect: how many support or contradict the claim, and which."""

    supports: int = 0
    opposes: int = 0
    text: str = ""


_ALL_FINITE = Divergence()


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claim that an effect is positive, with its evidence.

    Attributes:
      text: the claim.
      tolerance: effects up to it are too small to count, in the effect's unit.
      final: the evidence at the end of training; None if nothing was measured.
      history: the evidence at steps of training, oldest first; empty if measured only at the end.
      divergence: seeds that diverged among the runs that the claim is about.
      published: what was published, in words.
      published_effect: the published size of the effect; None if none was published.
      unit: unit of the effect.
      run_cost: tokens, and hours if known, of one more seed of the runs that the claim is about.
    """

    text: str
    tolerance: float
    final: Evidence | None
    history: Sequence[tuple[int, Evidence]] = ()
    divergence: Divergence = _ALL_FINITE
    published: str = ""
    published_effect: float | None = None
    unit: str = "nats"
    run_cost: tuple[int, float | None] | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement on a claim.

    `p_value` is the two-sided p-value of the null that the verdict rejects: an effect equal to the
    tolerance for "not reproduced", of zero for all others; `adjusted_p` is after Holm's correction
    over all claims judged together. `history` gives the judgement through training in words,
    `trajectory` the intervals by step, and `cost` how many seeds would decide an undecided claim.
    """

    claim: str
    published: str
    judgement: Judgement
    measured: str
    published_inside: str = "–"
    p_value: float | None = None
    adjusted_p: float | None = None
    history: str = ""
    cost: str = ""
    trajectory: Sequence[tuple[int, Interval]] = ()
    unit: str = "nats"

    @property
    def stands(self) -> bool:
        """Whether the claim is decided, and significant after the correction for all claims."""
        return self.adjusted_p is not None and (
            self.judgement not in ("undecided at this scale", "not measured")
            and self.adjusted_p <= SIGNIFICANCE
        )


def judge(
    interval: Interval,
    tolerance: float,
    divergence: Divergence = _ALL_FINITE,
    *,
    published_effect: float | None = None,
) -> Judgement:
    """Judges the claim that an effect is positive.

    Args:
      interval: of the effect.
      tolerance: effects up to it are too small to count, in the effect's unit.
      divergence: seeds without a finite effect.
      published_effect: the published size of the effect; None if there is none.
    """
    estimate, low, high = map(float, interval)
    judgement: Judgement = "undecided at this scale"
    if low > 0:
        judgement = "below the tolerance"
        if estimate > tolerance:
            judgement = "reproduced"
        elif published_effect is not None and high < published_effect:
            judgement = "smaller than published"
        contradictions = divergence.opposes
    elif high < tolerance:
        judgement = "not reproduced"
        contradictions = divergence.supports
    else:
        return judgement
    return "undecided at this scale" if contradictions else judgement


def verdict(claim: Claim) -> Verdict:
    """Judges one claim, at the end and through training; p-values are not yet adjusted."""
    if claim.final is None:
        judgement: Judgement = "not measured"
        if claim.divergence.text:
            judgement = "undecided at this scale"
        return Verdict(claim.text, claim.published, judgement, claim.divergence.text)

    def judged(evidence: Evidence) -> Judgement:
        return judge(
            evidence.interval,
            claim.tolerance,
            claim.divergence,
            published_effect=claim.published_effect,
        )

    judgement = judged(claim.final)
    null = claim.tolerance if judgement == "not reproduced" else 0.0
    p = p_value(claim.final.interval_at, null)
    is_undecided = judgement == "undecided at this scale"
    return Verdict(
        claim=claim.text,
        published=claim.published,
        judgement=judgement,
        measured="; ".join(filter(None, [claim.final.text, claim.divergence.text])),
        published_inside=_inside(claim.final.interval, claim.published_effect),
        p_value=None if math.isnan(p) else p,
        history=_spans([(step, judged(evidence)) for step, evidence in claim.history]),
        cost=_cost(claim) if is_undecided else "",
        trajectory=[(step, evidence.interval) for step, evidence in claim.history],
        unit=claim.unit,
    )


def judge_together(claims: Sequence[Claim]) -> list[Verdict]:
    """Judges claims as one family: Holm's correction counts all that have an interval."""
    verdicts = [verdict(claim) for claim in claims]
    tested = [index for index, found in enumerate(verdicts) if found.p_value is not None]
    adjusted = holm([p for found in verdicts if (p := found.p_value) is not None])
    for index, p in zip(tested, adjusted, strict=True):
        verdicts[index] = dataclasses.replace(verdicts[index], adjusted_p=p)
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many claims are judged, how many decided, and how many significant when corrected."""
    tested = [found for found in verdicts if found.p_value is not None]
    decided = [found for found in tested if found.judgement != "undecided at this scale"]
    standing = [found for found in decided if found.stands]
    return (
        f"{len(verdicts)} claims, of which {len(tested)} have an interval and are judged: "
        f"{len(decided)} are decided, and {len(standing)} of these are significant at 5% after "
        f"Holm's correction for {len(tested)} claims."
    )


def _inside(interval: Interval, published: float | None) -> str:
    _, low, high = map(float, interval)
    if published is None or math.isnan(low):
        return "–"
    if low <= published <= high:
        return "yes"
    return f"no, it is {'larger' if published > high else 'smaller'}"


def _spans(judged: Sequence[tuple[int, Judgement]]) -> str:
    """The judgements with their steps: "undecided 500 to 4,000, reproduced 5,000 to 9,000"."""
    spans = []
    for judgement, members in itertools.groupby(judged, key=lambda pair: pair[1]):
        steps = [step for step, _ in members]
        ends = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        spans.append(f"{judgement.removesuffix(' at this scale')} {ends}")
    if len(spans) > _MOST_SPANS:
        return f"it changes {len(spans) - 1} times, the last spans being " + ", ".join(spans[-3:])
    return ", ".join(spans)


def _cost(claim: Claim) -> str:
    """How many seeds would decide an undecided claim, by the spread found so far."""
    assert claim.final is not None
    _, low, high = claim.final.interval
    if judge(claim.final.interval, claim.tolerance) != "undecided at this scale":
        return "no number of seeds while some diverge against the verdict of the others"
    num, has_bounds = claim.final.num_seeds, math.isfinite(low) and math.isfinite(high)
    if num > 1 and not has_bounds:
        return "more seeds; how many is unknown, since the interval has no bounds"
    more, text = 2, "more seeds than one"
    if has_bounds and high > low:
        needed = _seeds_to_decide(claim.final, claim.tolerance)
        if needed is None:
            return f"more than {_MOST_SEEDS} seeds, if the spread stays"
        more, text = needed - num, f"{needed} seeds, if effect and spread stay"
    if claim.run_cost is not None:
        tokens, hours = claim.run_cost
        text += f": {more} more, {more * tokens / 1e6:,.1f} M tokens"
        if hours is not None:
            text += f", {more * hours:.2g} hours of one run at a time on this machine"
    return text


def _seeds_to_decide(evidence: Evidence, tolerance: float) -> int | None:
    """The fewest seeds whose interval would exclude zero or the tolerance; None above the most."""
    estimate, low, high = map(float, evidence.interval)
    numbers = np.arange(evidence.num_seeds, _MOST_SEEDS + 1)
    widths = 1 / np.sqrt(numbers)
    if evidence.is_student:
        widths *= stdtrit(numbers - 1, 0.975)
    shrunk = widths / widths[0]
    excludes_zero = (estimate - low) * shrunk < estimate
    excludes_tolerance = (high - estimate) * shrunk < tolerance - estimate
    enough = excludes_zero | excludes_tolerance
    enough[0] = False  # these seeds did not decide it
    return int(numbers[enough][0]) if enough.any() else None
