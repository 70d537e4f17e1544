"""Reductions of a step over its micro-batches, and over the devices that share them.

Without the name of an axis there is one device.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def sum_over_devices(tree: Tree, axis_name: str | None) -> Tree:
    """Sum over devices of every array of a tree."""
    if axis_name is None:
        return tree
    summed: Tree = jax.lax.psum(tree, axis_name)
    return summed


def mean_over_step(tree: Tree, axis_name: str | None) -> Tree:
    """Mean over micro-batches and devices, which all have the same number of sequences."""
    tree = jax.tree.map(lambda x_A: jnp.mean(x_A, axis=0), tree)
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def max_over_step(tree: Tree, axis_name: str | None) -> Tree:
    """Maximum over micro-batches and devices."""
    tree = jax.tree.map(lambda x_A: jnp.max(x_A, axis=0), tree)
    return tree if axis_name is None else jax.lax.pmax(tree, axis_name)


def num_devices(axis_name: str | None) -> int:
    """The number of devices over which the batch is split."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def global_rows(num_micro_batches: int, rows: int, axis_name: str | None) -> jax.Array:
    """Index [A, B] of each local sequence in the step's global batch, [A, devices, B] flattened."""
    devices = num_devices(axis_name)
    device = jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name)
    places_A1 = jnp.arange(num_micro_batches)[:, None] * devices + device
    return places_A1 * rows + jnp.arange(rows)[None]
