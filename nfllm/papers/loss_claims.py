"""The claim that one variant has a lower loss than another, over pairs of equal seed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nfllm.analysis.intervals import seed_interval
from nfllm.experiment.measured import GroupResults
from nfllm.papers.evidence import (
    divergence_of,
    interval_text,
    percent,
    run_cost,
    through_training,
)
from nfllm.papers.verdicts import Claim, Evidence

LOSS_TOLERANCE = math.log(1.018)  # nats


def loss_claim(
    group: GroupResults, text: str, worse: str, better: str, published_effect: float | None = None
) -> Claim:
    """That the loss of `worse` is above that of `better`; the published effect is in nats."""

    def evidence(losses: Mapping[str, Mapping[int, float]]) -> Evidence | None:
        a, b = losses[worse], losses[better]
        pairs = [float(a[seed] - b[seed]) for seed in sorted(a.keys() & b.keys())]
        if not pairs:
            return None
        mean, low, high = map(float, seed_interval(pairs))
        measured = (
            f"perplexity of {worse} against {better}: {percent(mean)} "
            f"({interval_text(percent(low), percent(high), len(pairs))}), {mean:+.4f} nats; "
            "tolerance 1.8%"
        )
        return Evidence(lambda c: seed_interval(pairs, confidence=c), len(pairs), measured)

    return Claim(
        text,
        LOSS_TOLERANCE,
        evidence({name: group.losses(name) for name in (worse, better)}),
        through_training(group, (worse, better), "eval_loss_nats", evidence),
        divergence_of(group, supports=(worse,), opposes=(better,)),
        "" if published_effect is None else percent(published_effect),
        published_effect,
        run_cost=run_cost(group, worse, better),
    )
