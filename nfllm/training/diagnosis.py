"""Finds where the NaN or infinity of a training step began; runs only after such a step.

It repeats the forward and backward pass with the step's parameters, batch, dropout and loss scale,
and counts non-finite values at every site of `nfllm.analysis.numerics`. Compiling it takes as long
as compiling the training step. Attention is explicit here, whatever
`model.attention_implementation` is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfllm import analysis
from nfllm.analysis import Ledger, NonfiniteCounts
from nfllm.analysis.numerics import LAYER_SITES
from nfllm.config import Config
from nfllm.data.batches import Batch
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import COUNTS, nonfinite_by_site
from nfllm.model.layers import stacks
from nfllm.model.parameters import Params
from nfllm.training.auxiliary import Auxiliary
from nfllm.training.loss import count_targets
from nfllm.training.objective import MicroBatch, Objective, micro_batch_weights

Diagnose = Callable[[Params, Batch, int, float, int], Ledger]


def make_diagnosis(
    config: Config,
    model: Decoder,
    auxiliaries: tuple[Auxiliary, ...] = (),
    result_sharding: jax.sharding.Sharding | None = None,
) -> Diagnose:
    """Returns `diagnose(params, parts, step, loss_scale, num_micro_batches)`, compiled when called.

    Args of the result:
      params: the parameters before the step.
      parts: `[P, B / P, T]`, the step's global batch in consecutive parts; each of its
        micro-batches is one part or several.
      step: number of the batch, from 0, which determines the dropout.
      loss_scale: factor of the loss, 1 except for float16. Gradients are computed with it and then
        divided by it, as in the step.
      num_micro_batches: number of micro-batches of the step.

    `result_sharding` is as for `telemetry.make_probe`.

    The result is the counts, in NumPy, at all of `LAYER_SITES`, `MODEL_SITES` and `GRADIENT_SITES`.
    `gradients` are those of the blocks, `other_gradients` those of embeddings, head and final
    normalization; `loss` has one entry for each part.
    """
    objective = Objective(model, config.training, auxiliaries)
    weighting = config.optimizer.accumulation_weighting

    @functools.partial(jax.jit, static_argnames="num_micro_batches", out_shardings=result_sharding)
    def diagnose(
        params: Params, parts: Batch, step: jax.Array, scale: jax.Array, num_micro_batches: int
    ) -> tuple[Ledger, Ledger]:
        tokens_PBT, labels_PBT = map(jnp.asarray, parts)
        num_parts, rows, _ = tokens_PBT.shape
        targets_P = jax.vmap(count_targets)(labels_PBT)
        targets_A = targets_P.reshape(num_micro_batches, -1).sum(1)
        weights_A = micro_batch_weights(targets_A, weighting)
        micro_batches = MicroBatch(
            tokens_PBT,
            labels_PBT,
            jnp.arange(num_parts * rows).reshape(num_parts, rows),
            jnp.repeat(weights_A, num_parts // num_micro_batches),
            jnp.full(num_parts, 1.0 / (num_parts * rows), jnp.float32),
        )
        differentiate = jax.value_and_grad(objective, has_aux=True)

        def accumulate(grads: Params, part: MicroBatch) -> tuple[Params, Ledger]:
            (_, forward), new = differentiate(params, part, step, scale, (COUNTS,))
            counts: Ledger = nonfinite_by_site(forward.collected[COUNTS], LAYER_SITES)
            counts["logits"] = _count_logits(model, params, forward.features_BTD)
            counts |= analysis.ledger({"loss": forward.loss})
            return jax.tree.map(jnp.add, grads, new), counts

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, counts_P = jax.lax.scan(accumulate, zeros, micro_batches)
        grads = jax.tree.map(lambda g: g / scale, grads)
        names = stacks(model.config)
        others = {name: value for name, value in grads.items() if name not in names}
        by_stack = [analysis.ledger({"gradients": grads[name]}) for name in names]
        gradients: Ledger = jax.tree.map(lambda *counts: jnp.concatenate(counts), *by_stack)
        return counts_P, gradients | analysis.ledger({"other_gradients": others})

    def on_host(
        params: Params, parts: Batch, step: int, loss_scale: float, num_micro_batches: int
    ) -> Ledger:
        arguments = (np.int32(step), np.float32(loss_scale), num_micro_batches)
        # Merged on the host in 64 bits: attention maps of a whole batch can have more entries than
        # 32 bits can count.
        counts_P, gradients = analysis.to_host(diagnose(params, parts, *arguments))
        each = [jax.tree.map(lambda x: x[i], counts_P) for i in range(len(parts.tokens))]  # noqa: B023
        return functools.reduce(analysis.merge_ledgers, each) | gradients

    return on_host


def _count_logits(model: Decoder, params: Params, x_BTD: jax.Array) -> NonfiniteCounts:
    """Counts at the output head, one position at a time, since all logits may not fit in memory."""

    def count(x_BD: jax.Array) -> NonfiniteCounts:
        logits_BV: Any = model.apply({"params": params}, x_BD, method=model.head)
        return analysis.count_nonfinite(logits_BV)

    each_T = jax.lax.map(count, jnp.moveaxis(x_BTD, 1, 0))
    summed = jax.tree.map(lambda x: jnp.sum(x, axis=0), each_T)
    return summed._replace(max_abs=jnp.max(each_T.max_abs))


def describe(counts: Ledger) -> str:
    """Where the first value that is not finite is, in words."""
    site = analysis.first_bad_site(counts)
    if site is not None:
        return f"first in {site}"
    largest_L = counts["gradients"].max_abs
    layer = int(np.argmax(largest_L))
    text = (
        "when computed again, all values and gradient entries are finite, but their norm or sum "
        f"may overflow; the largest |gradient| of a layer is {largest_L[layer]:.3g}, in layer "
        f"{layer}"
    )
    if "attention_logits" not in counts:  # of a mixer without softmax
        return text
    largest = np.max(counts["attention_logits"].max_abs)
    return f"{text}, the largest |attention logit| {largest:.3g}"
