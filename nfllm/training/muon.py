"""Muon for matrices that are stacked over layers.

By default optax applies Muon to arrays with two axes. Here these are embeddings and stacked scales
of normalizations, [L, D], and not the blocks' matrices, [L, ...]. So each matrix names its axes of
rows and columns; its other axes (the layer; query, key and value) index a batch of matrices.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import optax

from nfllm.config import ConfigError, OptimizerConfig
from nfllm.model.parameters import Kind, Mask, Params, Path, kind_of
from nfllm.training.schedules import Schedule

_RMS = 0.2  # of an update, as with AdamW, so that learning rates carry over (arXiv 2502.16982)

Axes: TypeAlias = optax.contrib.MuonDimensionNumbers


def muon(
    config: OptimizerConfig,
    schedule: Schedule,
    decay_mask: Mask,
    adamw: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, AdamW for the rest, both with `decay_mask`.

    There are two optimizers because the AdamW inside `optax.contrib.muon` has no decay mask.

    Args:
      config: Muon's momentum is `muon_momentum`.
      schedule: the learning rate of Muon.
      decay_mask: function from parameters to a tree of booleans.
      adamw: the optimizer of the rest.

    Raises:
      ConfigError: when initialized: there is no matrix among the parameters.
    """

    def axes(params: Params) -> Params:
        axes_of = functools.partial(_axes, per_head=config.muon_per_head)
        return jax.tree_util.tree_map_with_path(axes_of, params)

    def labels(params: Params) -> Params:
        found = jax.tree_util.tree_map_with_path(
            lambda path, x: "muon" if is_matrix(path, x) else "adam", params
        )
        if "muon" not in jax.tree.leaves(found):
            raise ConfigError(
                "optimizer.variant='muon' finds no matrix in the blocks of this model; use 'adamw'"
            )
        return found

    of_matrices = optax.contrib.muon(
        schedule,
        beta=config.muon_momentum,
        weight_decay=config.weight_decay,
        weight_decay_mask=decay_mask,
        consistent_rms=_RMS,
        muon_weight_dimension_numbers=axes,
    )
    return optax.partition({"muon": of_matrices, "adam": adamw}, labels)


def is_matrix(path: Path, x: jax.Array) -> bool:
    """Whether Muon updates it: a decayed matrix of the blocks, not an embedding or output head."""
    stacked = path[0].key.endswith("blocks") and x.ndim > 2
    return stacked and kind_of(path) is Kind.DECAYED


def _axes(path: Path, x: jax.Array, *, per_head: bool) -> Axes | None:
    """The axes of the rows and of the columns of a matrix; None if it is not Muon's."""
    if not is_matrix(path, x):
        return None
    name, last = path[-1].key, x.ndim - 1
    if name in ("q_kernel", "forget_kernel", "refine_kernel"):  # [L, D, H, K]
        return Axes((last - 2,), (last,) if per_head else (last - 1, last))
    if name in ("qkv_kernel", "qk_kernel", "kv_kernel"):  # [L, D, 3, H, K]
        return Axes((last - 3,), (last,) if per_head else (last - 1, last))
    if name == "out_kernel" and "attention" in [key.key for key in path]:  # [L, H, K, D]
        return Axes((last - 1,) if per_head else (last - 2, last - 1), (last,))
    return Axes((last - 1,), (last,))
