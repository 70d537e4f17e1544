"""Freezing norms after training: their standard deviations over a split, and the loss it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfllm.config import IGNORED_LABEL, RemovalConfig
from nfllm.config.names import FROZEN
from nfllm.data.batches import Batch
from nfllm.measure.labelled import labelled
from nfllm.model.decoder import Decoder
from nfllm.model.frozen_norm import GATE, SIGMA
from nfllm.model.intermediates import UPDATES
from nfllm.model.norm_sites import (
    Place,
    at_places,
    frozen_places,
    keys_of,
    map_norms,
    norm_names,
    of_norms,
)
from nfllm.model.parameters import Params, Variables
from nfllm.run import Run
from nfllm.trainer.evaluation import evaluate
from nfllm.training.eval_step import make_eval_step
from nfllm.training.updates import with_statistics


@dataclasses.dataclass(frozen=True)
class FrozenNorms:
    """A run with all its norms frozen, and the losses with and without them.

    Attributes:
      run: the frozen run; its path is that of the original.
      loss_nats: mean loss of the original model; None without `with_losses`.
      frozen_loss_nats: mean loss with all norms frozen; None without `with_losses`.
      each: mean loss with one norm frozen, by its site and layer (None for the final norm); empty
        without `with_losses`.
      num_windows: number of windows that deviations and losses were measured on.
    """

    run: Run
    loss_nats: float | None
    frozen_loss_nats: float | None
    each: dict[Place, float]
    num_windows: int


def freeze_norms(
    run: Run,
    batches: Sequence[Batch],
    *,
    first_position: bool = False,
    with_losses: bool = True,
) -> FrozenNorms:
    """Replaces each LayerNorm's standard deviation by its mean over a split (arXiv 2507.02559).

    Norms of a `frozen_layernorm` model that a removal schedule froze keep their deviation.

    Args:
      run: a run with LayerNorm before its branches, or before the head, or both.
      batches: token ids and labels, such as `run.validation_batches()`; windows without a label
        are skipped.
      first_position: give the first position its own deviation, since its residual stream may be
        far larger.
      with_losses: also evaluate the original model, the frozen one, and the model with each single
        norm frozen, up to 3 L + 3 evaluations.

    Raises:
      ValueError: the model has no LayerNorm, no window has a label, or a token id is outside the
        model's vocabulary.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> batches = run.validation_batches(8, max_windows=8)
      >>> frozen = freeze_norms(run, batches, with_losses=False)
      >>> frozen.run.config.model.final_normalization
      'frozen_layernorm'
    """
    every = labelled(batches, run.model.vocab_size)
    batches = [rows for batch in every if len((rows := _with_target(batch)).tokens)]
    if not batches:
        raise ValueError("no window has a label; give batches of the text to measure over")
    model, params = with_gates(run.model, run.params, first_position=first_position)
    open_gates = of_norms(model.config, params, GATE)
    real = map_norms(_at_zero, params, open_gates)
    measured = _measure(model, real, batches)
    frozen = jax.tree.map(jnp.asarray, map_norms(_closed, measured, open_gates))
    config = dataclasses.replace(run.config, model=model.config, removal=RemovalConfig())
    result = dataclasses.replace(run, model=model, params=frozen, config=config)
    num_windows = sum(len(batch.tokens) for batch in batches)
    if not with_losses:
        return FrozenNorms(result, None, None, {}, num_windows)

    step = jax.jit(make_eval_step(model))

    def loss(gates: Variables) -> float:
        own = map_norms(lambda norm, gate: {**norm, GATE: jnp.asarray(gate)}, measured, gates)
        return evaluate(step, own, batches, lambda batch: batch).loss_nats

    each = {}
    for place in frozen_places(model.config):
        alone = at_places(model.config, {place: 0.0}, 1.0)
        each[place] = loss(jax.tree.map(lambda a, b: np.minimum(a, b), alone, open_gates))
    return FrozenNorms(
        result, loss(open_gates), loss(of_norms(model.config, frozen, GATE)), each, num_windows
    )


class Gated(NamedTuple):
    """A model, and its parameters."""

    model: Decoder
    params: Params


def with_gates(model: Decoder, params: Params, *, first_position: bool = False) -> Gated:
    """The same model with frozen_layernorm in place of LayerNorm; its gates are 1 (not frozen).

    Raises:
      ValueError: the model has neither kind of norm.
    """
    old = model.config
    at = norm_names(old)
    if not {"layernorm", FROZEN} & set(at.values()):
        listed = ", ".join(f"{site}: {name}" for site, name in at.items())
        raise ValueError(f"the model has no LayerNorm to freeze ({listed})")
    splits_first = old.frozen_first_position or first_position
    new: dict[str, Any] = dict.fromkeys(keys_of(old, "layernorm"), FROZEN)
    config = dataclasses.replace(old, **new, frozen_first_position=splits_first)
    ones = at_places(config, {}, np.float32(1.0))

    def gated(norm: Params, gate: np.ndarray) -> Params:
        gate = norm.get(GATE, gate)
        sigma = norm.get(SIGMA, np.zeros_like(gate))
        if splits_first and sigma.ndim == gate.ndim:
            sigma = np.stack([sigma, sigma], axis=-1)
        return {**norm, GATE: gate, SIGMA: sigma}

    return Gated(model.clone(config=config), map_norms(gated, params, ones))


def _sigmas(updates: Mapping[str, Any]) -> dict[str, Any]:
    """The updates of deviations; the directions of spectral norms stay as they are."""
    parts = {name: _sigmas(x) for name, x in updates.items() if isinstance(x, Mapping)}
    found = {name: part for name, part in parts.items() if part}
    return {**found, SIGMA: updates[SIGMA]} if SIGMA in updates else found


def _with_target(batch: Batch) -> Batch:
    has_target_B = np.any(np.asarray(batch.labels)[:, 1:] != IGNORED_LABEL, axis=1)
    return Batch(np.asarray(batch.tokens)[has_target_B], np.asarray(batch.labels)[has_target_B])


def _at_zero(norm: Params, gate: np.ndarray) -> Params:
    """The norm with deviation 0 where its gate is open, which makes it use that of the batch."""
    sigma = np.asarray(norm[SIGMA])
    is_open = gate == 1.0
    is_open = is_open[..., None] if sigma.ndim > gate.ndim else is_open
    return {**norm, SIGMA: np.where(is_open, np.float32(0.0), sigma)}


def _closed(norm: Params, gate: np.ndarray) -> Params:
    return {**norm, GATE: np.zeros_like(gate)}


def _measure(model: Decoder, params: Params, batches: Iterable[Batch]) -> Params:
    """The parameters with the mean deviations over all windows."""

    @jax.jit
    def deviations(params: Params, tokens_BT: jax.Array) -> Variables:
        _, state = model.apply(
            {"params": params}, tokens_BT, method=model.features, mutable=[UPDATES]
        )
        return _sigmas(state[UPDATES])

    total, count = None, 0
    for batch in batches:
        rows = len(batch.tokens)
        found = jax.device_get(deviations(params, batch.tokens))
        scaled = jax.tree.map(lambda x: rows * np.asarray(x, np.float64), found)  # noqa: B023
        total = scaled if total is None else jax.tree.map(np.add, total, scaled)
        count += rows
    means = jax.tree.map(lambda x: np.float32(x / count), total)
    return with_statistics(params, means)
