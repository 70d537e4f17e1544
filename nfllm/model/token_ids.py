"""Checks that token ids are rows of a model's embedding table, which devices do not."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def check_token_ids(tokens: Any, vocab_size: int, *, ignored: int | None = None) -> None:
    """Raises ValueError unless every entry of `tokens` is a row of the table.

    On a device, indexing beyond an array gives its last row and no error. Traced ids have no values
    yet and pass: check them before tracing.

    Args:
      tokens: integers of any shape, of NumPy, JAX or torch, or nested lists.
      vocab_size: rows of the table; ids run from 0 to `vocab_size - 1`.
      ignored: one more value that is allowed, such as `IGNORED_LABEL` for labels.
    """
    if isinstance(tokens, jax.core.Tracer):
        return
    is_global = isinstance(tokens, jax.Array) and not tokens.is_fully_addressable
    for part in [shard.data for shard in tokens.addressable_shards] if is_global else [tokens]:
        ids = np.asarray(part)
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"token ids are integers, not {ids.dtype}, of shape {ids.shape}")
        outside = (ids < 0) | (ids >= vocab_size)
        if ignored is not None:
            outside &= ids != ignored
        if outside.any():
            place = tuple(np.argwhere(outside)[0].tolist())
            raise ValueError(
                f"token id {ids[place]} at {list(place)} is outside the model's table of "
                f"{vocab_size} ids, 0 to {vocab_size - 1}; encode with the tokenizer that the "
                "model was trained with, and leave out padding such as -100"
            )
