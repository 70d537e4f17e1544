"""The claims of the paper, judged by numbers: reproduced, not reproduced, or undecided.

Each claim is that some effect is positive. It is reproduced where the effect's 95% interval over
seeds (Student's t on pairs of equal seed) lies above zero and its mean above a tolerance; not
reproduced where the whole interval lies below the tolerance; undecided otherwise. With one seed
there is no interval; plus or minus the tolerance stands for it.

The tolerance of losses is what the authors' own reruns of one model differ by, 1.8% of perplexity
(arXiv 2603.06922 against 2410.09637); that of shares of heads is 10 points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from nfllm.analysis import compare_seeds, overload_share
from nfllm.experiment.measured import GroupResults
from nfllm.report.published import Published, find_published
from nfllm.report.runs import notation
from nfllm.report.tables import percent_change

LOSS_TOLERANCE = math.log(1.018)  # nats
SHARE_TOLERANCE = 0.10

_DTYPES = {"auto": "default type"}

Judgement = Literal["reproduced", "not reproduced", "undecided at this scale", "not measured"]


class Verdict(NamedTuple):
    """One claim, with what was measured for and against it in words."""

    claim: str
    published: str
    judgement: Judgement
    measured: str


def judge(effects: list[float], tolerance: float) -> tuple[Judgement, float, float, float]:
    """The judgement on "this effect is positive", with mean and bounds, from one value a seed."""
    if not effects:
        return "not measured", math.nan, math.nan, math.nan
    found = compare_seeds(effects, [0.0] * len(effects), paired=True)
    mean, low, high = found.difference, found.low, found.high
    if len(effects) == 1:
        low, high = mean - tolerance, mean + tolerance
    if low > 0 and mean > tolerance:
        return "reproduced", mean, low, high
    if high < tolerance:
        return "not reproduced", mean, low, high
    return "undecided at this scale", mean, low, high


INCONCLUSIVE = "These runs are too short for verdicts, which show only that each can be computed."


def judge_claims(group: GroupResults) -> list[Verdict]:
    """All claims that the variants of the group can speak to."""
    return [verdict for claims in _CLAIMS for verdict in claims(group)]


def _perplexity_claims(group: GroupResults) -> Iterator[Verdict]:
    for claim, worse, better in (
        ("Without LayerNorm, ReLU is better than GELU", "sm+g", "sm+r"),
        ("With LayerNorm, GELU is better than ReLU", "sm+ln+r", "sm+ln+g"),
        ("Taking out LayerNorm costs perplexity, with ReLU", "sm+r", "sm+ln+r"),
        ("Taking out LayerNorm costs perplexity, with GELU", "sm+g", "sm+ln+g"),
    ):
        a, b = group.losses(worse), group.losses(better)
        pairs = {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}
        judgement, mean, low, high = judge(list(pairs.values()), LOSS_TOLERANCE)
        text = ""
        if pairs:
            text = (
                f"perplexity of {worse} against {better}: {_percent(mean)} "
                f"({_interval(_percent(low), _percent(high), len(pairs))}), {mean:+.4f} nats; "
                "tolerance 1.8%"
            )
        there, here = (_published(group, variant) for variant in (worse, better))
        change = percent_change(there and there.perplexity, here and here.perplexity)
        published = "" if change is None else f"{change:+.1f}%"
        yield Verdict(claim, published, judgement, text)


def _entropy_claims(group: GroupResults) -> Iterator[Verdict]:
    maximum = group.maximum
    if maximum is None:
        return

    def shares(variant: str, part: Callable[[np.ndarray], np.ndarray]) -> dict[int, float]:
        return {
            seed: float(overload_share(part(entropy_LH).reshape(-1), maximum))
            for seed, entropy_LH in group.entropies(variant).items()
        }

    def early(entropy_LH: np.ndarray) -> np.ndarray:
        return entropy_LH[: max(1, len(entropy_LH) // 2)]

    def everywhere(entropy_LH: np.ndarray) -> np.ndarray:
        return entropy_LH

    gelu = shares("sm+g", early)
    judgement, mean, low, high = judge([s - 0.5 for s in gelu.values()], SHARE_TOLERANCE)
    text = (
        f"{100 * (mean + 0.5):.0f}% of the heads in the first half of the layers have 3/4 M or "
        f"more ({_interval(_points(low + 0.5), _points(high + 0.5), len(gelu))}); the claim is "
        f"more than half of them; M = {maximum:.3f} nats"
    )
    claim = "Early layers of norm-free GELU are overloaded"
    published = _published_overload(group, "early_overload", "sm+g")
    yield Verdict(claim, published, judgement, text if gelu else "")
    for claim, field, part in (
        (
            "Early layers of norm-free GELU are more overloaded than ReLU's",
            "early_overload",
            early,
        ),
        ("Over all layers, norm-free GELU is more overloaded", "overload", everywhere),
    ):
        gelu, relu = shares("sm+g", part), shares("sm+r", part)
        seeds = sorted(gelu.keys() & relu.keys())
        judgement, mean, low, high = judge([gelu[s] - relu[s] for s in seeds], SHARE_TOLERANCE)
        text = (
            f"{_points(float(np.mean([gelu[s] for s in seeds])))} of the heads to "
            f"{_points(float(np.mean([relu[s] for s in seeds])))}: {100 * mean:+.0f} points "
            f"({_interval(f'{100 * low:+.0f}', f'{100 * high:+.0f}', len(seeds))}); tolerance 10"
            if seeds
            else ""
        )
        published = _published_overload(group, field, "sm+g", "sm+r")
        yield Verdict(claim, published, judgement, text)


def _slope_claims(group: GroupResults) -> Iterator[Verdict]:
    for variant, seeds in group.variants.items():
        for run in seeds.values():
            config = run.entry.config
            if config.model.activation != "learnable_leaky_relu" or run.run is None:
                continue
            sharing = "one slope" if config.model.slope_sharing == "model" else "a slope a layer"
            decay = "with" if config.optimizer.decay_slopes else "without"
            claim = f"Learned slopes go toward zero ({sharing}, {decay} weight decay on them)"
            published = "toward zero" if config.optimizer.decay_slopes else ""
            slopes_L = run.run.last("negative_slopes")
            if slopes_L is None or run.outcome.status != "finished":
                yield Verdict(claim, published, "not measured", run.outcome.message)
                continue
            start, mean = config.model.slope, float(np.mean(np.abs(slopes_L)))
            judgement: Judgement = "undecided at this scale"
            if mean <= start / 2:
                judgement = "reproduced"
            elif mean > start:
                judgement = "not reproduced"
            text = (
                f"{variant}: from {start:g} to {np.min(slopes_L):+.3f} … {np.max(slopes_L):+.3f}, "
                f"mean of the absolute values {mean:.4f}; reproduced at half the start or less, "
                "not above the start"
            )
            yield Verdict(claim, published, judgement, text)


def _divergence_claims(group: GroupResults) -> Iterator[Verdict]:
    for seeds in group.variants.values():
        for run in seeds.values():
            config = run.entry.config
            if (config.model.normalization, config.model.activation) != ("none", "identity"):
                continue
            dtype = config.training.dtype
            claim = f"The softmax-only network diverges ({_DTYPES.get(dtype, dtype)})"
            published = "NaN" if dtype == "float16" else ""
            judgement: Judgement = "not measured"
            text = run.outcome.message
            if run.outcome.status == "diverged":
                judgement = "reproduced"
            elif run.loss is not None and run.run is not None:
                judgement = "not reproduced"
                text = f"finished at {run.loss:.4f} nats"
                if "logit_max_abs" in run.run.series:
                    largest = run.run.series["logit_max_abs"][1].max()
                    text += f"; largest |attention logit| ever probed {largest:.3g}"
            yield Verdict(claim, published, judgement, text)


def _cause_claims(group: GroupResults) -> Iterator[Verdict]:
    claim = "The GELU of early norm-free layers is a linear map, the ReLU is not"
    costs = {
        variant: [
            run.cause.early_loss - run.cause.loss
            for run in group.variants.get(variant, {}).values()
            if run.cause is not None
        ]
        for variant in ("sm+g", "sm+r", "sm+ln+g", "sm+ln+r")
    }
    if costs["sm+g"] and costs["sm+r"]:
        # Linear: the replacement costs less than the tolerance.
        gelu_linear = judge([LOSS_TOLERANCE - c for c in costs["sm+g"]], 0.0)[0]
        relu_not = judge([c - LOSS_TOLERANCE for c in costs["sm+r"]], 0.0)[0]
        judgement: Judgement = "undecided at this scale"
        if gelu_linear == relu_not == "reproduced":
            judgement = "reproduced"
        elif "not reproduced" in (gelu_linear, relu_not):
            judgement = "not reproduced"
        listed = ", ".join(
            f"{np.mean(values):.4f} in {variant}" for variant, values in costs.items() if values
        )
        text = (
            "activations of the first half of the layers replaced by their best linear fits: loss "
            f"rises by {listed} (nats, mean over seeds); linear is below {LOSS_TOLERANCE:.4f}"
        )
        yield Verdict(claim, "", judgement, text)
    yield from _handicap_claim(group)


def _handicap_claim(group: GroupResults) -> Iterator[Verdict]:
    """How far norm-free GELU is on the way from ReLU to a linear MLP."""
    losses = [group.losses(name) for name in ("half_linear", "sm+g", "sm+r")]
    seeds = sorted(set.intersection(*map(set, losses)))
    if not seeds:
        return
    linear, gelu, relu = (np.asarray([found[s] for s in seeds]) for found in losses)
    claim = "Most of norm-free GELU's handicap is that of a linear MLP"
    if np.any(linear <= relu):
        text = "an MLP of x/2 is no worse than ReLU, so there is no such handicap to share out"
        yield Verdict(claim, "", "not reproduced", text)
        return
    shares = (gelu - relu) / (linear - relu)
    judgement, mean, *_ = judge([float(share) - 0.5 for share in shares], SHARE_TOLERANCE)
    text = (
        f"losses {linear.mean():.4f} with x/2, {gelu.mean():.4f} with GELU, {relu.mean():.4f} with "
        f"ReLU: GELU loses {100 * (mean + 0.5):.0f}% of what ReLU gains over a linear MLP "
        f"({len(seeds)} seed{'s' * (len(seeds) > 1)}); the claim is more than half, tolerance 10 "
        "points"
    )
    yield Verdict(claim, "", judgement, text)


_CLAIMS: tuple[Callable[[GroupResults], Iterator[Verdict]], ...] = (
    _perplexity_claims,
    _entropy_claims,
    _slope_claims,
    _divergence_claims,
    _cause_claims,
)


def _published(group: GroupResults, variant: str) -> Published | None:
    runs = group.variants.get(variant, {})
    model = next((run.entry.config.model for run in runs.values()), None)
    return None if model is None else find_published(model, notation(model))


def _published_overload(group: GroupResults, field: str, *variants: str) -> str:
    """Published percent of heads, "88% to 44%" for two variants; empty where one is missing."""
    shares = [getattr(_published(group, variant), field, None) for variant in variants]
    return "" if None in shares else " to ".join(f"{share:.0f}%" for share in shares)


def _percent(nats: float) -> str:
    return f"{100 * math.expm1(nats):+.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:.0f}%"


def _interval(low: str, high: str, seeds: int) -> str:
    if seeds < 2:
        return "one seed"
    return f"95% interval {low} to {high} over {seeds} seeds"
