"""Updates of measured parameters, after those of the optimizer.

A parameter of `Kind.STATISTIC` is part of the parameter tree, so that checkpoints, sharding and
every function of (model, params) include it. It has no gradient and no weight decay; its module
writes the next value into the collection `UPDATES`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nfllm.model.parameters import Kind, Params, Path, Variables, kind_of


def has_statistics(params: Params) -> bool:
    """Whether some parameter is measured rather than learned."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return any(kind_of(path) is Kind.STATISTIC for path in paths)


def without_gradients_of_statistics(grads: Params) -> Params:
    """The gradients with 0 for each parameter that is measured: it has no part in their norm."""

    def keep(path: Path, grad: jax.Array) -> jax.Array:
        return jnp.zeros_like(grad) if kind_of(path) is Kind.STATISTIC else grad

    return jax.tree_util.tree_map_with_path(keep, grads)


def with_statistics(params: Params, updates: Variables) -> Params:
    """The parameters, with those replaced that have a leaf of the same path in `updates`."""
    if not isinstance(updates, Mapping):
        return updates
    return {
        name: with_statistics(value, updates[name]) if name in updates else value
        for name, value in params.items()
    }
