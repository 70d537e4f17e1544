"""Batches as functions that measure losses read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch, as_batches, with_labels
from nfllm.model.token_ids import check_token_ids


def labelled(batches: Iterable[Any], vocab_size: int) -> Iterator[Batch]:
    """Token ids and labels [B, T], int32 on the host; an array counts as its own labels.

    Unsigned integers cannot hold `IGNORED_LABEL`: without the cast it would be one of their ids.

    Raises:
      ValueError: an array is not [B, T], labels have another shape, or an id is outside of the
        vocabulary.
    """
    for batch in as_batches(batches):
        tokens, labels = with_labels(batch)
        check_token_ids(tokens, vocab_size)
        check_token_ids(labels, vocab_size, ignored=IGNORED_LABEL)
        yield Batch(tokens.astype(np.int32), labels.astype(np.int32))
