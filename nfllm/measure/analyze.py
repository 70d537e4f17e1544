"""`analyze`: statistics of a model over a whole split, in memory independent of the split's size.

Each batch is captured and reduced to a mergeable state on the device; states are merged on the
host in double precision. The result equals that of one pass over all sequences at once, on any
number of devices and hosts.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from nfllm.analysis import to_host
from nfllm.config import IGNORED_LABEL, ModelConfig
from nfllm.data.batches import Batch, as_batches, with_labels
from nfllm.measure.metrics import DEFAULT_METRICS, Metric, Observed, find_metrics
from nfllm.measure.sites import Sites
from nfllm.model.capture import Captured, capture
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import ATTENTION_LOGITS, ATTENTION_PROBS
from nfllm.model.parameters import Params
from nfllm.model.token_ids import check_token_ids

State = Any
"""The state of a metric: an object with a method `merge`, or a dictionary of such objects."""
Put = Callable[[np.ndarray], jax.Array]


_OF_HIDDEN_LAYERS = {"linear_fit", "unit_activity", "spectra"}


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
    chosen = find_metrics(_default_metrics(model.config) if metrics is None else metrics)
    if "mlp_ratio" in chosen and model.config.norm_placement == "post":
        raise ValueError(
            "metric 'mlp_ratio' needs the skip connection that the MLP's output is added to, which "
            "is not captured with model.norm_placement='post'; leave the metric out"
        )
    if "attention_ratio" in chosen and model.config.attention_skip != 1.0:
        raise ValueError(
            "metric 'attention_ratio' needs the skip connection that attention is added to, which "
            f"is not captured with model.attention_skip={model.config.attention_skip}; leave the "
            "metric out"
        )
    lacking = sorted(_OF_HIDDEN_LAYERS & chosen.keys())
    if lacking and not _has_hidden(model.config):
        raise ValueError(
            f"metric {lacking[0]!r} is about the hidden layer of MLPs, which model.mlp="
            f"{model.config.mlp!r} does not have; leave the metric out"
        )
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


def _default_metrics(config: ModelConfig) -> Sequence[str]:
    left_out: list[str] = []
    if not config.has_attention_maps:
        left_out = [name for name in DEFAULT_METRICS if name.endswith("entropy")]
        logging.warning(
            "model.mixer=%r has no attention entropy: %s are left out",
            *(config.mixer, ", ".join(left_out)),
        )
    if not _has_hidden(config):
        of_mlps = [name for name in DEFAULT_METRICS if name in _OF_HIDDEN_LAYERS]
        logging.warning(
            "model.mlp=%r has no hidden layer: %s are left out", config.mlp, ", ".join(of_mlps)
        )
        left_out += of_mlps
    return [name for name in DEFAULT_METRICS if name not in left_out]


def _has_hidden(config: ModelConfig) -> bool:
    return config.has_hidden_layers and config.num_mlp_layers > 0


def stream(
    measure: Callable[[np.ndarray], dict[str, State]],
    batches: Iterable[np.ndarray | Batch],
    metrics: Mapping[str, Metric],
) -> dict[str, State] | None:
    """Merges the states that `measure` computes from token ids [B, T], by name of the metric."""
    merge_on_device: Callable[[State, State], State] = jax.jit(merge_states, donate_argnums=0)
    total: dict[str, State] = {}

    def add(states: dict[str, State]) -> None:
        for name, state in states.items():
            on_device = metrics[name].stays_on_device
            state = state if on_device else to_host(state)
            merge = merge_on_device if on_device else merge_states
            total[name] = merge(total[name], state) if name in total else state

    pending: dict[str, State] = {}
    for batch in as_batches(batches):
        tokens = _real_rows(batch)
        if len(tokens):
            # The device computes this batch while the host merges the previous one.
            measured = measure(tokens)
            add(pending)
            pending = measured
    add(pending)
    return jax.tree.map(np.asarray, total) if total else None


def merge_states(a: State, b: State) -> State:
    """Merges two states of a metric: mergeable states, or a dict of them."""
    if isinstance(a, dict):
        return {name: merge_states(value, b[name]) for name, value in a.items()}
    # The Inf and NaN of a diverged model are results, not errors.
    with np.errstate(invalid="ignore", over="ignore"):
        return a.merge(b)


def merge_across_processes(states: dict[str, State] | None) -> dict[str, State]:
    """The states of all processes, merged in the order of processes, on every process.

    Raises:
      ValueError: a process has no state.
    """
    payload = b""
    if states is not None:
        leaves, structure = jax.tree.flatten(states)
        file = io.BytesIO()
        np.savez(file, *leaves)
        payload = file.getvalue()
    sizes = np.atleast_1d(multihost_utils.process_allgather(np.int32(len(payload))))
    if states is None or not sizes.all():
        idle = np.flatnonzero(sizes == 0).tolist()
        where = f" on process {', '.join(map(str, idle))}" if len(sizes) > 1 else ""
        raise ValueError(f"there is no sequence to analyze{where}: batches is empty")
    if len(sizes) == 1:
        return states
    # They are sent as bytes, since JAX would send double precision as single.
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    merged: dict[str, State] = {}
    for size, data in zip(sizes, multihost_utils.process_allgather(padded), strict=True):
        with np.load(io.BytesIO(data[:size].tobytes())) as file:
            other = jax.tree.unflatten(structure, [file[f"arr_{i}"] for i in range(len(leaves))])
        merged = merge_states(merged, other) if merged else other
    return merged


def _real_rows(batch: np.ndarray | Batch) -> np.ndarray:
    tokens, labels = map(np.asarray, with_labels(batch))
    return tokens[(labels != IGNORED_LABEL).any(axis=-1)] if isinstance(batch, Batch) else tokens


def of_this_process(params: Params) -> Params:
    """Parameters that every process holds, as arrays of this process only.

    Raises:
      ValueError: they are sharded over processes.
    """

    def local(x: jax.Array) -> jax.Array:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if not x.is_fully_replicated:
            raise ValueError(
                "params are sharded over several processes; gather them first, for example by "
                "restoring the checkpoint on each process"
            )
        return x.addressable_data(0)

    return jax.tree.map(local, params)
