"""`analyze`: statistics of a model over a whole split, in memory independent of the split's size.

Each batch is captured and reduced to a mergeable state on the device; states are merged on the
host in double precision. The result equals that of one pass over all sequences at once, on any
number of devices and hosts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.data.batches import Batch
from nfllm.measure.merging import State, merge_across_processes, of_this_process, stream
from nfllm.measure.metric_limits import check_metrics, default_metrics
from nfllm.measure.metrics import Metric, Observed, find_metrics
from nfllm.measure.sites import Sites
from nfllm.model.capture import Captured, capture
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import ATTENTION_LOGITS, ATTENTION_PROBS
from nfllm.model.parameters import Params
from nfllm.model.token_ids import check_token_ids

Put = Callable[[np.ndarray], jax.Array]


def analyze(
    model: Decoder,
    params: Params,
    batches: Iterable[np.ndarray | Batch],
    metrics: Sequence[str | Metric] | None = None,
    *,
    put: Put = jnp.asarray,
) -> dict[str, Any]:
    """Measures a model over all sequences of `batches`.

    Args:
      model: the model.
      params: its parameters.
      batches: token ids `[B, T]`, or batches with labels, whose padding rows (rows without a label,
        which `evaluation_batches` adds) are left out. With several processes, each passes its
        share.
      metrics: names from `nfllm.measure.metrics.METRICS`, or your own metrics. None:
        `DEFAULT_METRICS`, without those of entropy if the mixer has no softmax.
      put: places token ids on devices of this process; `Placement(config).put_probe` distributes
        them over all its devices.

    Returns:
      The result of each metric by name, as NumPy arrays; the same on every process.

    Raises:
      ValueError: an unknown metric, or one that needs what the model lacks; no sequence on some
        process; or a token id outside the model's vocabulary.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> results = analyze(run.model, run.params, run.validation_batches(), ["head_entropy"])
      >>> mean_LH = results["head_entropy"].mean  # nats, over sequences
      >>> error_LH = results["head_entropy"].standard_error()
    """
    chosen = find_metrics(default_metrics(model.config) if metrics is None else metrics)
    check_metrics(chosen, model.config)
    states = merge_across_processes(accumulate(model, params, batches, chosen, put=put))
    return {name: metric.result(states[name]) for name, metric in chosen.items()}


def accumulate(
    model: Decoder,
    params: Params,
    batches: Iterable[np.ndarray | Batch],
    metrics: Mapping[str, Metric],
    *,
    put: Put = jnp.asarray,
) -> dict[str, State] | None:
    """The states of this process's sequences, on the host; None if it has no sequence."""
    chosen, params = tuple(metrics.values()), of_this_process(params)

    def measure(tokens: np.ndarray) -> dict[str, State]:
        check_token_ids(tokens, model.vocab_size)
        return _measure(model, chosen, params, put(tokens))

    return stream(measure, batches, metrics)


# At module level, so that all checkpoints of a run share one compiled program.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    model: Decoder, metrics: tuple[Metric, ...], params: Params, tokens_BT: jax.Array
) -> dict[str, State]:
    captured = capture(model, params, tokens_BT)
    if model.config.has_attention_maps:
        observed = Observed(captured, tokens_BT)
        return {metric.name: metric.of(observed) for metric in metrics}
    found, why = captured._asdict(), f", as model.mixer={model.config.mixer!r} has no softmax"
    arrays = {
        name: x for name, x in found.items() if name not in (ATTENTION_LOGITS, ATTENTION_PROBS)
    }

    def without_maps(metric: Metric) -> Observed:
        return Observed(cast(Captured, Sites(arrays, metric.name, why)), tokens_BT)

    return {metric.name: metric.of(without_maps(metric)) for metric in metrics}
