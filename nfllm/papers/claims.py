"""The claims of the paper that a group of runs can test.

The tolerance for losses is the difference between the authors' two runs of one model, 1.8% of
perplexity (arXiv 2603.06922 against 2410.09637); for shares of heads it is 10 points, for slopes
10% of their start value. Losses are compared over pairs of equal seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from nfllm.analysis.comparisons import ratio_interval
from nfllm.analysis.intervals import Interval, seed_interval
from nfllm.experiment.measured import GroupResults
from nfllm.papers.cause_claims import cause_claims
from nfllm.papers.entropy_claims import SHARE_TOLERANCE, entropy_claims
from nfllm.papers.evidence import (
    divergence_of,
    has_all,
    interval_text,
    points,
    published_of,
    run_cost,
    through_training,
)
from nfllm.papers.loss_claims import LOSS_TOLERANCE, loss_claim
from nfllm.papers.slope_claims import divergence_claims, slope_claims
from nfllm.papers.verdicts import Claim, Evidence


def claims_of(group: GroupResults) -> list[Claim]:
    """All claims that the variants of the group can test."""
    makers = (
        _perplexity_claims,
        entropy_claims,
        slope_claims,
        divergence_claims,
        _linearity_claims,
        _handicap_claims,
        cause_claims,
    )
    return [claim for make in makers for claim in make(group)]


def _perplexity_claims(group: GroupResults) -> Iterator[Claim]:
    for text, worse, better in (
        ("Without LayerNorm, ReLU is better than GELU", "sm+g", "sm+r"),
        ("With LayerNorm, GELU is better than ReLU", "sm+ln+r", "sm+ln+g"),
        ("Taking out LayerNorm costs perplexity, with ReLU", "sm+r", "sm+ln+r"),
        ("Taking out LayerNorm costs perplexity, with GELU", "sm+g", "sm+ln+g"),
    ):
        if not has_all(group, worse, better):
            continue
        there, here = (published_of(group, variant) for variant in (worse, better))
        effect = None
        if there and here and there.perplexity and here.perplexity:
            effect = math.log(there.perplexity / here.perplexity)
        yield loss_claim(group, text, worse, better, effect)


def _linearity_claims(group: GroupResults) -> Iterator[Claim]:
    costs = {
        variant: [
            run.cause.early_loss - run.cause.loss
            for run in group.variants.get(variant, {}).values()
            if run.cause is not None
        ]
        for variant in ("sm+g", "sm+r", "sm+ln+g", "sm+ln+r")
    }
    if not (costs["sm+g"] and costs["sm+r"]):
        return

    def both(confidence: float) -> Interval:
        """The weaker of two effects: GELU's cost is below the tolerance, and ReLU's above it."""
        gelu = seed_interval([LOSS_TOLERANCE - c for c in costs["sm+g"]], confidence=confidence)
        relu = seed_interval([c - LOSS_TOLERANCE for c in costs["sm+r"]], confidence=confidence)
        return Interval(*(float(np.minimum(a, b)) for a, b in zip(gelu, relu, strict=True)))

    listed = ", ".join(
        f"{np.mean(values):.4f} in {variant}" for variant, values in costs.items() if values
    )
    num = min(len(costs["sm+g"]), len(costs["sm+r"]))
    measured = (
        "activations of the first half of the layers replaced by their best linear fits: loss "
        f"rises by {listed} (nats, mean over seeds, {num} or more); linear is below "
        f"{LOSS_TOLERANCE:.4f}"
    )
    yield Claim(
        "The GELU of early norm-free layers is a linear map, the ReLU is not",
        0.0,
        Evidence(both, num, measured),
        divergence=divergence_of(group, supports=("sm+g", "sm+r"), opposes=("sm+g", "sm+r")),
        run_cost=run_cost(group, "sm+g", "sm+r"),
    )


def _handicap_claims(group: GroupResults) -> Iterator[Claim]:
    """How far the loss of norm-free GELU lies between that of ReLU and that of a linear MLP."""
    names = ("half_linear", "sm+g", "sm+r")
    if not has_all(group, *names):
        return

    def evidence(losses: Mapping[str, Mapping[int, float]]) -> Evidence | None:
        seeds = sorted(set.intersection(*(set(losses[name]) for name in names)))
        if not seeds:
            return None
        linear, gelu, relu = (np.array([float(losses[n][s]) for s in seeds]) for n in names)
        above, whole = (gelu - relu).tolist(), (linear - relu).tolist()
        share, low, high = map(float, ratio_interval(above, whole))
        measured = (
            f"losses {linear.mean():.4f} with x/2, {gelu.mean():.4f} with GELU, {relu.mean():.4f} "
            f"with ReLU: GELU loses {points(share)} of what ReLU gains over a linear MLP "
            f"({interval_text(points(low), points(high), len(seeds))}); the claim is more than "
            "half, tolerance 10 points"
        )
        if np.mean(whole) <= 0:
            measured += "; an MLP of x/2 is no worse than ReLU here, so there is no such handicap"

        def above_half(confidence: float) -> Interval:
            found = ratio_interval(above, whole, confidence=confidence)
            if np.mean(whole) <= 0:  # a ratio without meaning
                return Interval(found.estimate, -math.inf, math.inf)
            return Interval(*(x - 0.5 for x in found))

        return Evidence(above_half, len(seeds), measured)

    yield Claim(
        "Most of norm-free GELU's handicap is that of a linear MLP",
        SHARE_TOLERANCE,
        evidence({name: group.losses(name) for name in names}),
        through_training(group, names, "eval_loss_nats", evidence),
        divergence_of(group, supports=names, opposes=names),
        unit="share of the handicap, above one half",
        run_cost=run_cost(group, *names),
    )
