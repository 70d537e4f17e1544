"""The layers of a decoder as stacks of equal blocks, and variables of stacks joined over layers.

`blocks` are all layers. With `model.mlp_pruned_layers` they are the first layers, and the deepest
ones, which have no MLP, are `attention_blocks`: parameters, caches and patches [L, ...] are then in
two parts.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

from nfllm.config import ModelConfig
from nfllm.model.parameters import Variables

Tree = TypeVar("Tree")

BLOCKS = "blocks"
ATTENTION_BLOCKS = "attention_blocks"


def stacks(config: ModelConfig) -> dict[str, int]:
    """The number of layers of each stack, in order of depth."""
    if not config.mlp_pruned_layers:
        return {BLOCKS: config.num_layers}
    return {BLOCKS: config.num_mlp_layers, ATTENTION_BLOCKS: config.mlp_pruned_layers}


def split_layers(config: ModelConfig, blocks: Tree) -> dict[str, Tree]:
    """A tree of arrays [L, ...] as one tree for each stack."""
    parts, start = {}, 0
    for name, depth in stacks(config).items():
        parts[name] = jax.tree.map(lambda x: x[start : start + depth], blocks)  # noqa: B023
        start += depth
    return parts


def join_layers(variables: Variables) -> Variables:
    """Variables of the blocks, their attention and their MLP, by name, joined over all layers.

    Those of attention are [L, ...]; those of the MLP have as many entries as layers have an MLP.
    """
    found = [_flat(variables[name]) for name in (BLOCKS, ATTENTION_BLOCKS) if name in variables]
    first, *others = found
    joined = dict(first)
    for other in others:
        both = {name: joined[name] for name in joined.keys() & other.keys()}
        deeper = {name: other[name] for name in both}
        joined |= jax.tree.map(lambda a, b: jnp.concatenate([a, b]), both, deeper)
    return joined


def _flat(block: Variables) -> Variables:
    """A block's own entries, with those of its attention and MLP."""
    own = {name: value for name, value in block.items() if name not in ("attention", "mlp")}
    return {**own, **block.get("attention", {}), **block.get("mlp", {})}
