"""What happens to the parameters after the optimizer: measured ones take their new values.

A parameter of `Kind.STATISTIC` is part of the parameter tree, so that checkpoints, sharding and
every function of (model, params) have it; no gradient reaches it, and nothing decays it. A module
records its next value in the collection `UPDATES`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from nfllm.model.parameters import Kind, Params, Variables, kind_of


def has_statistics(params: Params) -> bool:
    """Whether some parameter is measured and not learned."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return any(kind_of(path) == Kind.STATISTIC for path in paths)


def with_statistics(params: Params, updates: Variables) -> Params:
    """The parameters with the leaves of `updates` in place of those of the same path."""
    if not isinstance(updates, Mapping):
        return updates
    return {
        name: with_statistics(value, updates[name]) if name in updates else value
        for name, value in params.items()
    }
