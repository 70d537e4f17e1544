"""Claims about overloaded heads: shares of heads, with the heads of a layer as one cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from nfllm.analysis import overload_share
from nfllm.analysis.clustered_shares import share_difference_interval, share_interval
from nfllm.analysis.heads import early_layers
from nfllm.analysis.intervals import Interval
from nfllm.experiment.measured import GroupResults
from nfllm.papers.evidence import (
    divergence_of,
    has_all,
    interval_text,
    points,
    published_of,
    run_cost,
    through_training,
)
from nfllm.papers.verdicts import Claim, Evidence

SHARE_TOLERANCE = 0.10

_HEATMAP = "computed from the published heatmaps"


def entropy_claims(group: GroupResults) -> Iterator[Claim]:
    """That early layers of norm-free GELU are overloaded, and more so than ReLU's."""
    maximum = group.maximum
    if maximum is None:
        return
    if has_all(group, "sm+g"):
        yield _early_overload(group, maximum)
    if not has_all(group, "sm+g", "sm+r"):
        return
    for text, early in (
        ("Early layers of norm-free GELU are more overloaded than ReLU's", True),
        ("Over all layers, norm-free GELU is more overloaded", False),
    ):
        field = "early_overload" if early else "overload"
        there, here = (getattr(published_of(group, name), field, None) for name in ("sm+g", "sm+r"))
        published, effect = "", None
        if there is not None and here is not None:
            effect = (there - here) / 100
            published = f"{there:.0f}% to {here:.0f}%"
            published += f", {_HEATMAP}" if early else ""
        yield overload_claim(
            group, text, "sm+g", "sm+r", early=early, published=published, published_effect=effect
        )


def _early_overload(group: GroupResults, maximum: float) -> Claim:
    def evidence(entropies: Mapping[str, Mapping[int, np.ndarray]]) -> Evidence | None:
        finite = _finite(entropies["sm+g"])
        if not finite:
            return None
        shares = _shares(finite, maximum, early=True)
        mean, low, high = map(float, share_interval(shares))
        measured = (
            f"{points(mean)} of the heads in the first half of the layers have 3/4 M or more "
            f"({interval_text(points(low), points(high), len(shares))}); the claim is more than "
            f"half of them, tolerance 10 points; M = {maximum:.3f} nats"
        )

        def above_half(confidence: float) -> Interval:
            return Interval(*(x - 0.5 for x in share_interval(shares, confidence=confidence)))

        return Evidence(above_half, len(shares), measured, is_student=False)

    there = published_of(group, "sm+g")
    early = there and there.early_overload
    return Claim(
        "Early layers of norm-free GELU are overloaded",
        SHARE_TOLERANCE,
        evidence({"sm+g": group.entropies("sm+g")}),
        through_training(group, ("sm+g",), "entropy_nats", evidence),
        divergence_of(group, supports=("sm+g",), opposes=("sm+g",), of_heads=True),
        "" if early is None else f"{early:.0f}%, {_HEATMAP}",
        None if early is None else early / 100 - 0.5,
        "share of heads, above one half",
        run_cost(group, "sm+g"),
    )


def overload_claim(
    group: GroupResults,
    text: str,
    more: str,
    less: str,
    *,
    early: bool = False,
    published: str = "",
    published_effect: float | None = None,
) -> Claim:
    """That more heads of the variant `more` than of `less` have 3/4 M or more.

    Args:
      group: the group of both variants, whose M is used.
      text: the claim.
      more: the variant with more such heads.
      less: the variant with fewer.
      early: whether only heads of the first half of the layers count.
      published: what was published, in words.
      published_effect: the same as a difference of shares.
    """
    maximum = group.maximum

    def evidence(entropies: Mapping[str, Mapping[int, np.ndarray]]) -> Evidence | None:
        one, other = _finite(entropies[more]), _finite(entropies[less])
        seeds = one.keys() & other.keys()
        if not seeds or maximum is None:
            return None
        a, b = (_shares({s: x[s] for s in seeds}, maximum, early=early) for x in (one, other))
        mean, low, high = map(float, share_difference_interval(a, b))
        words = interval_text(f"{100 * low:+.0f}", f"{100 * high:+.0f}", len(seeds))
        measured = (
            f"{points(a.mean())} of the heads to {points(b.mean())}: {100 * mean:+.0f} "
            f"points ({words}); tolerance 10"
        )
        return Evidence(
            lambda c: share_difference_interval(a, b, confidence=c),
            len(seeds),
            measured,
            is_student=False,
        )

    names = (more, less)
    return Claim(
        text,
        SHARE_TOLERANCE,
        evidence({name: group.entropies(name) for name in names}),
        through_training(group, names, "entropy_nats", evidence),
        divergence_of(group, supports=names, opposes=names, of_heads=True),
        published,
        published_effect,
        "share of heads",
        run_cost(group, *names),
    )


def _shares(entropies: Mapping[int, np.ndarray], maximum: float, *, early: bool) -> np.ndarray:
    """Share of heads with 3/4 M or more, by seed and layer."""
    entropy_NLH = np.stack([entropies[seed] for seed in sorted(entropies)])
    layers = entropy_NLH.shape[1]
    return np.asarray(
        overload_share(entropy_NLH[:, : early_layers(layers) if early else layers], maximum),
        np.float64,
    )


def _finite(entropies: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {seed: values for seed, values in entropies.items() if np.isfinite(values).all()}
