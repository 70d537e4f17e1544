"""Claims about overloaded heads: shares over seeds, with the heads of a layer as one cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from nfllm.analysis import overload_share
from nfllm.analysis.clustered_shares import share_difference_interval, share_interval
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

    def overloaded(entropies: Mapping[int, np.ndarray], early: bool) -> np.ndarray:
        entropy_NLH = np.stack([entropies[seed] for seed in sorted(entropies)])
        layers = entropy_NLH.shape[1]
        return np.asarray(
            overload_share(entropy_NLH[:, : max(1, layers // 2) if early else layers], maximum),
            np.float64,
        )

    def gelu_early(entropies: Mapping[str, Mapping[int, np.ndarray]]) -> Evidence | None:
        finite = _finite(entropies["sm+g"])
        if not finite:
            return None
        shares = overloaded(finite, early=True)
        mean, low, high = map(float, share_interval(shares))
        measured = (
            f"{points(mean)} of the heads in the first half of the layers have 3/4 M or more "
            f"({interval_text(points(low), points(high), len(shares))}); the claim is more than "
            f"half of them, tolerance 10 points; M = {maximum:.3f} nats"
        )

        def above_half(confidence: float) -> Interval:
            return Interval(*(x - 0.5 for x in share_interval(shares, confidence=confidence)))

        return Evidence(above_half, len(shares), measured)

    if has_all(group, "sm+g"):
        there = published_of(group, "sm+g")
        early = there and there.early_overload
        yield Claim(
            "Early layers of norm-free GELU are overloaded",
            SHARE_TOLERANCE,
            gelu_early({"sm+g": group.entropies("sm+g")}),
            through_training(group, ("sm+g",), "entropy_nats", gelu_early),
            divergence_of(group, supports=("sm+g",), opposes=("sm+g",)),
            "" if early is None else f"{early:.0f}%, {_HEATMAP}",
            None if early is None else early / 100 - 0.5,
            "share of heads, above one half",
            run_cost(group, "sm+g"),
        )
    if not has_all(group, "sm+g", "sm+r"):
        return
    for text, early in (
        ("Early layers of norm-free GELU are more overloaded than ReLU's", True),
        ("Over all layers, norm-free GELU is more overloaded", False),
    ):

        def more(
            entropies: Mapping[str, Mapping[int, np.ndarray]], early: bool = early
        ) -> Evidence | None:
            gelu, relu = _finite(entropies["sm+g"]), _finite(entropies["sm+r"])
            seeds = gelu.keys() & relu.keys()
            if not seeds:
                return None
            a = overloaded({seed: gelu[seed] for seed in seeds}, early)
            b = overloaded({seed: relu[seed] for seed in seeds}, early)
            mean, low, high = map(float, share_difference_interval(a, b))
            words = interval_text(f"{100 * low:+.0f}", f"{100 * high:+.0f}", len(seeds))
            measured = (
                f"{points(a.mean())} of the heads to {points(b.mean())}: {100 * mean:+.0f} "
                f"points ({words}); tolerance 10"
            )
            return Evidence(
                lambda c: share_difference_interval(a, b, confidence=c), len(seeds), measured
            )

        field = "early_overload" if early else "overload"
        there, here = (getattr(published_of(group, name), field, None) for name in ("sm+g", "sm+r"))
        published, effect = "", None
        if there is not None and here is not None:
            effect = (there - here) / 100
            published = f"{there:.0f}% to {here:.0f}%"
            published += f", {_HEATMAP}" if early else ""
        yield Claim(
            text,
            SHARE_TOLERANCE,
            more({name: group.entropies(name) for name in ("sm+g", "sm+r")}),
            through_training(group, ("sm+g", "sm+r"), "entropy_nats", more),
            divergence_of(group, supports=("sm+g", "sm+r"), opposes=("sm+g", "sm+r")),
            published,
            effect,
            "share of heads",
            run_cost(group, "sm+g", "sm+r"),
        )


def _finite(entropies: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    return {seed: values for seed, values in entropies.items() if np.isfinite(values).all()}
