"""`analyze` for models of other libraries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from nfllm.analysis.arrays import Arrays
from nfllm.data.batches import Batch
from nfllm.measure.foreign.sites import check_sites
from nfllm.measure.merging import merge_across_processes, stream
from nfllm.measure.metrics import Metric, Observed, find_metrics
from nfllm.measure.sites import Sites
from nfllm.model.capture import Captured

SitesOf = Callable[[np.ndarray], Mapping[str, Arrays]]
"""From token ids [B, T], int32, to some of the fields of `nfllm.Captured` by their names: arrays of
any framework, or a tuple with one array for each layer."""


def analyze(
    sites_of: SitesOf,
    batches: Iterable[np.ndarray | Batch],
    metrics: Sequence[str | Metric] = ("head_entropy", "sequence_entropy"),
) -> dict[str, Any]:
    """`nfllm.analyze` of any decoder.

    Entropy is computed from `attention_logits` with a causal mask or, if the model does not give
    them, from `attention_probs` as they are.

    Args:
      sites_of: the model, as a function from token ids to arrays: see `SitesOf`.
      batches: token ids `[B, T]` of the model's own tokenizer, or batches with labels; whole
        sequences, since every position counts.
      metrics: as in `nfllm.analyze`; each needs some sites, and an error names a missing one.

    Returns:
      The result of each metric by name.

    Raises:
      ValueError: an unknown metric, one whose sites the model does not give, no sequence, or a site
        that is unknown or of the wrong shape.

    Example:
      >>> uniform = np.tri(4) / np.arange(1, 5)[:, None]
      >>> def sites_of(tokens_BT):  # two layers of one head
      ...     return {"attention_probs": np.tile(uniform, (2, len(tokens_BT), 1, 1, 1))}
      >>> results = analyze(sites_of, [np.array([[5, 6, 7, 8]])], ["head_entropy"])
      >>> results["head_entropy"].mean.round(3)  # ln(4!) / 4 nats, [L, H]
      array([[0.795],
             [0.795]])
    """
    chosen = find_metrics(metrics)

    def measure(tokens: np.ndarray) -> dict[str, Any]:
        return _measure(tuple(chosen.values()), check_sites(sites_of(tokens), tokens), tokens)

    states = merge_across_processes(stream(measure, batches, chosen))
    return {name: metric.result(states[name]) for name, metric in chosen.items()}


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    metrics: tuple[Metric, ...], arrays: dict[str, jax.Array], tokens_BT: jax.Array
) -> dict[str, Any]:
    def observed(metric: Metric) -> Observed:
        return Observed(cast(Captured, Sites(arrays, metric.name)), tokens_BT)

    return {metric.name: metric.of(observed(metric)) for metric in metrics}
