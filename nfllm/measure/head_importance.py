"""How much each attention head matters: the rise of the loss when it is replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.analysis import Interval, bootstrap_interval
from nfllm.analysis.shown import shown_in_a_line
from nfllm.config import suggest
from nfllm.data.batches import Batch, as_batches
from nfllm.measure.evaluation import row_losses, row_targets
from nfllm.measure.interventions import (
    freeze_heads,
    replace_heads,
    uniform_attention,
)
from nfllm.measure.labelled import labelled
from nfllm.model.capture import capture, site_shapes
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params
from nfllm.model.patch import Patch, patch_variables
from nfllm.run import Run

Replacement = Literal["zero", "mean", "uniform", "mean_pattern"]


@shown_in_a_line
class HeadImportance(NamedTuple):
    """How much the loss of a model depends on each head."""

    rise_LH: Interval
    """Loss with the head replaced minus the original loss, in nats per target, with its 95%
    interval from a paired bootstrap over sequences. Below 0 the model is better without the head.
    """
    loss_nats: float
    """Loss of the original model, per target."""
    num_targets: int


def head_importance(
    run: Run,
    batches: Iterable[Batch | np.ndarray],
    replacement: Replacement = "mean",
) -> HeadImportance:
    """The rise of the loss when a single head is replaced, for each head, [L, H].

    Args:
      run: the run.
      batches: token ids [B, T], with or without labels; a sequence rather than a generator, since
        it is iterated over twice.
      replacement: "zero" or "mean" replaces a head's output, by 0 or by its mean over all positions
        of the sequences with a target; "uniform" or "mean_pattern" replaces its attention, by a
        uniform pattern or by its mean over these sequences, which must have one length.

    Returns:
      The rise for each head and its interval.

    Raises:
      ValueError: an unknown replacement, a replacement of attention in a model without attention,
        fewer than two sequences with a target, or a token id outside the model's vocabulary.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> found = nfllm.head_importance(run, run.validation_batches(8, max_windows=8))
      >>> layer, head = divmod(int(found.rise_LH.estimate.argmax()), run.config.model.num_heads)
    """
    if replacement not in get_args(Replacement):
        raise ValueError(
            f"unknown replacement {replacement!r}; {suggest(replacement, get_args(Replacement))}"
        )
    model, params, batches = run.model, run.params, as_batches(batches)
    if replacement in ("uniform", "mean_pattern") and not model.config.has_attention_maps:
        raise ValueError(
            f"replacement={replacement!r} takes the place of a head's attention, which "
            f"model.mixer={model.config.mixer!r} does not have; use 'zero' or 'mean'"
        )
    replace = replace_heads if replacement in ("zero", "mean") else freeze_heads
    value: Any = 0.0
    if replacement in ("mean", "mean_pattern"):
        value = _mean_site(model, params, batches, replacement)
    nats, targets = [], []
    for tokens, labels in labelled(batches, model.vocab_size):
        if replacement == "uniform":
            value = uniform_attention(tokens.shape[1])
        nats.append(np.asarray(_losses(model, params, value, replace, tokens, labels), np.float64))
        targets.append(np.asarray(row_targets(jnp.asarray(labels))))
    rows = np.concatenate(targets) > 0 if targets else np.zeros(0, bool)
    if rows.sum() < 2:
        raise ValueError(
            f"an interval needs two sequences with a target, but batches has {rows.sum()}"
        )
    nats_BN, targets_B = np.concatenate(nats)[rows], np.concatenate(targets)[rows]
    rises_BN = nats_BN[:, 1:] - nats_BN[:, :1]
    interval = bootstrap_interval(
        np.concatenate([targets_B[:, None], rises_BN], axis=1),
        key=jax.random.key(0),
        statistic=lambda x: jnp.sum(x[:, 1:], axis=0) / jnp.sum(x[:, 0]),
    )
    heads = (model.config.num_layers, model.config.num_heads)
    rise_LH = Interval(*(jnp.asarray(bound).reshape(heads) for bound in interval))
    num_targets = int(targets_B.sum())
    return HeadImportance(rise_LH, float(nats_BN[:, 0].sum() / num_targets), num_targets)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _losses(
    model: Decoder,
    params: Params,
    value: jax.Array,
    replace: Callable[[jax.Array, jax.Array], Patch],
    tokens_BT: jax.Array,
    labels_BT: jax.Array,
) -> jax.Array:
    """Summed loss of each sequence, [B, 1 + L H]: of the original model, then without each head."""
    shapes = site_shapes(model, tokens_BT)

    def losses(is_head_LH: jax.Array) -> jax.Array:
        patches = patch_variables([replace(is_head_LH, value)], shapes, model.config)
        logits_BTV: Any = model.apply({"params": params, **patches}, tokens_BT)
        return row_losses(logits_BTV, labels_BT)

    heads = (model.config.num_layers, model.config.num_heads)
    count = heads[0] * heads[1]
    chosen = jnp.concatenate([jnp.zeros((1, count), bool), jnp.eye(count, dtype=bool)])
    return jax.lax.map(losses, chosen.reshape(-1, *heads)).T


def _mean_site(
    model: Decoder, params: Params, batches: Iterable[Batch | np.ndarray], replacement: str
) -> jax.Array:
    """The mean output of each head, or its mean pattern, over the sequences that have a target."""

    @jax.jit
    def summed(params: Params, tokens_BT: jax.Array, counted_B: jax.Array) -> jax.Array:
        captured = capture(model, params, tokens_BT)
        if replacement == "mean":
            site = jnp.sum(captured.head_out, axis=2, keepdims=True)
        else:
            site = captured.attention_probs
        counted = counted_B[None, :, None, None, None]
        return jnp.sum(jnp.where(counted, site, 0), axis=1, keepdims=True)

    total: float | np.ndarray = 0.0
    count, lengths = 0, set[int]()
    for tokens, labels in labelled(batches, model.vocab_size):
        length = tokens.shape[1]
        lengths.add(length)
        if replacement == "mean_pattern" and len(lengths) > 1:
            raise ValueError(
                "replacement='mean_pattern' needs sequences of one length, but batches has "
                f"{' and '.join(map(str, sorted(lengths)))}; use 'mean' or 'uniform'"
            )
        counted_B = row_targets(jnp.asarray(labels)) > 0
        total = total + np.asarray(summed(params, tokens, counted_B), np.float64)
        count += int(counted_B.sum()) * (length if replacement == "mean" else 1)
    return jnp.asarray(total / max(1, count), jnp.float32)
