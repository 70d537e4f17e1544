"""Start values that follow from matrices, for parameters that a warm start does not copy.

The gains of weight norm start at the norms of their kernels, and the directions of power iteration
at the leading ones (`nfllm.model.weight_norm`). Where kernels come from another run, these must
start from the copied kernels: with the gains of other kernels the model would be another one.
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp

from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params, Path, name_of

_STARTS = ("gain", "direction")


def following_kernels(names: Collection[str], copied: Collection[str]) -> frozenset[str]:
    """Those of `names` that are not copied although the kernel is from which they start.

    Example:
      >>> names = ["blocks.mlp.in_kernel", "blocks.mlp.in_gain", "blocks.attention.head_gain"]
      >>> sorted(following_kernels(names, copied=["blocks.mlp.in_kernel"]))
      ['blocks.mlp.in_gain']
    """
    return frozenset(
        name
        for name in set(names) - set(copied)
        for part in _STARTS
        if name.endswith(part) and f"{name.removesuffix(part)}kernel" in copied
    )


def start_from_kernels(model: Decoder, params: Params, names: Collection[str]) -> Params:
    """The parameters with `names` as in a new model that has all the others."""
    shardings = jax.tree.map(lambda x: x.sharding, params)

    def start(params: Params) -> Params:
        tokens_BT = jnp.zeros((1, 1), jnp.int32)
        _, found = model.apply({"params": _without(params, names)}, tokens_BT, mutable=["params"])

        def choose(path: Path, old: jax.Array) -> jax.Array:
            if name_of(path) not in names:
                return old
            new = found["params"]
            for key in path:
                new = new[key.key]
            return new

        return jax.tree_util.tree_map_with_path(choose, params)

    started: Params = jax.jit(start, out_shardings=shardings)(params)
    return started


def _without(params: Params, names: Collection[str], prefix: str = "") -> Params:
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in params.items()
        if f"{prefix}{key}" not in names
    }
