"""Loss and perplexity over a whole split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from nfllm.data.batches import Batch
from nfllm.model.parameters import Params
from nfllm.rundir.perplexity import perplexity
from nfllm.trainer import peers
from nfllm.training.eval_step import EvalSums


class Evaluation(NamedTuple):
    """Mean loss in nats per target, its exponential, the number of targets, and the time taken."""

    loss_nats: float
    perplexity: float
    num_targets: int
    seconds: float


def evaluate(
    eval_step: Callable[[Params, Batch], EvalSums],
    params: Params,
    batches: Iterable[Batch],
    put: Callable[[Batch], Batch],
) -> Evaluation:
    """Mean loss over all targets of `batches`: summed losses over summed counts.

    Each result is read while the device computes the next.
    """
    begin = time.perf_counter()
    loss, targets = 0.0, 0
    pending: EvalSums | None = None
    for number, batch in enumerate(batches):
        peers.progress(f"evaluation batch {number}")
        sums = eval_step(params, put(batch))
        if pending is not None:
            loss, targets = loss + float(pending.loss_nats), targets + int(pending.num_targets)
        pending = sums
    if pending is not None:
        loss, targets = loss + float(pending.loss_nats), targets + int(pending.num_targets)
    mean = loss / targets if targets else math.nan
    return Evaluation(mean, perplexity(mean), targets, time.perf_counter() - begin)
