"""Claims about learned slopes, and about the network without any activation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from scipy.stats import binomtest

from nfllm.analysis.intervals import Interval, seed_interval
from nfllm.experiment.measured import GroupResults
from nfllm.papers.evidence import common_steps, divergence_of, interval_text, run_cost
from nfllm.papers.verdicts import Claim, Evidence
from nfllm.report.training_sections import slopes_without_gradient

SLOPE_TOLERANCE = 0.10  # of the start

_DTYPES = {"auto": "default type"}


def slope_claims(group: GroupResults) -> Iterator[Claim]:
    """That learned slopes are nearer to zero than weight decay alone would leave them."""
    for variant, runs in group.variants.items():
        config = next(iter(runs.values())).entry.config
        if config.model.activation != "learnable_leaky_relu":
            continue
        start = config.model.slope
        if not start:  # it cannot go toward zero
            continue
        alone: dict[int, float] = {}
        for run in runs.values():
            if run.run is not None and "negative_slopes" in run.run.series:
                curve = slopes_without_gradient(run.run)
                if curve is not None:
                    alone |= dict(zip(curve.x.tolist(), curve.y.tolist(), strict=True))

        def evidence(
            slopes: Mapping[str, Mapping[int, np.ndarray]],
            step: int,
            variant: str = variant,
            start: float = start,
            alone: Mapping[int, float] = alone,
        ) -> Evidence | None:
            found = [np.abs(values) for values in slopes[variant].values()]
            if not found or step not in alone:
                return None
            left = abs(alone[step])
            effects = [(left - float(np.mean(values))) / abs(start) for values in found]
            signed = np.concatenate([np.ravel(values) for values in slopes[variant].values()])
            _, low, high = map(float, seed_interval(effects))
            measured = (
                f"{variant}: from {start:g} to {signed.min():+.3f} … {signed.max():+.3f}, mean of "
                f"the absolute values {np.mean(found):.4f}, where weight decay alone would leave "
                f"{left:.4f}; lower by {100 * np.mean(effects):.0f}% of the start "
                f"({interval_text(f'{100 * low:.0f}%', f'{100 * high:.0f}%', len(effects))}), "
                "tolerance 10%"
            )
            return Evidence(lambda c: seed_interval(effects, confidence=c), len(effects), measured)

        series = group.series(variant, "negative_slopes")
        history = [
            (step, found)
            for step in common_steps({variant: series})
            if (found := evidence({variant: {s: v[step] for s, v in series.items()}}, step))
        ]
        sharing = "one slope" if config.model.slope_sharing == "model" else "a slope a layer"
        decay = "with" if config.optimizer.decay_slopes else "without"
        yield Claim(
            f"Learned slopes go toward zero ({sharing}, {decay} weight decay on them)",
            SLOPE_TOLERANCE,
            history[-1][1] if history else None,
            history,
            divergence_of(group, supports=(variant,), opposes=(variant,)),
            "toward zero, which weight decay alone does too" if decay == "with" else "",
            None,
            "share of the start",
            run_cost(group, variant),
        )


def divergence_claims(group: GroupResults) -> Iterator[Claim]:
    """That the softmax-only network diverges: most of its seeds do."""
    for variant, runs in group.variants.items():
        config = next(iter(runs.values())).entry.config
        if (config.model.normalization, config.model.activation) != ("none", "identity"):
            continue
        diverged = group.diverged(variant)
        ended = len(diverged) + len(group.losses(variant))
        evidence = None
        if ended:
            above_half = functools.partial(_above_half, len(diverged), ended)
            measured = f"{len(diverged)} of {ended} seeds diverged; the claim is that most do"
            messages = [runs[seed].outcome.message for seed in sorted(diverged)]
            largest = [
                float(run.run.series["logit_max_abs"][1].max())
                for run in runs.values()
                if run.run is not None and "logit_max_abs" in run.run.series
            ]
            if messages:
                measured += f": {messages[0]}"
            elif largest:
                measured += f"; largest |attention logit| ever probed {max(largest):.3g}"
            evidence = Evidence(above_half, ended, measured, is_student=False)
        dtype = config.training.dtype
        yield Claim(
            f"The softmax-only network diverges ({_DTYPES.get(dtype, dtype)})",
            0.0,
            evidence,
            published="NaN" if dtype == "float16" else "",
            run_cost=run_cost(group, variant),
        )


def _above_half(number: int, trials: int, confidence: float) -> Interval:
    """The share of so many trials, less one half, with Clopper and Pearson's interval."""
    share = number / trials
    low, high = binomtest(number, trials).proportion_ci(confidence, method="exact")
    return Interval(share - 0.5, low - 0.5, high - 0.5)
