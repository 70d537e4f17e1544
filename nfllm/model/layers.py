"""The layers of a decoder as stacks of equal blocks, and what they record as one list of layers.

`blocks` are all layers, or, with `model.mlp_pruned_layers`, the first ones; the deepest, which have
no MLP, are then `attention_blocks`. So parameters, caches and patches [L, ...] come in two parts.
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
    """How many layers each stack has, in the order in which they follow."""
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
    """What the blocks hold themselves and in attention and MLP, by name, stacked over layers.

    Attention has L of each; the MLP as many as there are layers with one.
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
