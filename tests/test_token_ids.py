"""Ids that the embedding table does not have, wherever a caller's ids enter a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_model
from training_parts import VOCAB_SIZE

from nfllm.analysis import LinearFit
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.analyze import analyze
from nfllm.measure.labelled import labelled
from nfllm.measure.linear_replacement import replace_by_linear
from nfllm.measure.metrics import class_responses
from nfllm.model.capture import capture
from nfllm.model.decoder import Decoder
from nfllm.model.token_ids import check_token_ids
from nfllm.training.loss import count_targets

LINE = LinearFit(np.zeros(2), np.zeros(2), np.zeros(2))
ENTRIES: dict[str, Callable[[Decoder, Any, Any], Any]] = {
    "capture": capture,
    "analyze": lambda model, params, ids: analyze(model, params, [ids], ["head_entropy"]),
    "analyze_batch": lambda model, params, ids: analyze(
        model, params, [Batch(ids, ids)], ["head_entropy"]
    ),
    "replace_by_linear": lambda model, params, ids: replace_by_linear(
        model, params, [Batch(ids, ids)], LINE
    ),
    "labels": lambda model, params, ids: replace_by_linear(
        model, params, [Batch(np.zeros_like(ids), ids)], LINE
    ),
}


def ids_with(bad: int, dtype: type = np.int64) -> np.ndarray:
    ids = np.arange(8).reshape(2, 4).astype(dtype)
    ids[1, 2] = bad
    return ids


@pytest.mark.parametrize("entry", ENTRIES)
# The last one is 3 in 32 bits, which is all that JAX keeps of it.
@pytest.mark.parametrize("bad", [VOCAB_SIZE, 50_256, -1, -VOCAB_SIZE - 1, -99, 2**32 + 3])
def test_an_id_outside_the_table_is_named_with_the_size(entry, bad):
    model, params = random_model(0.2)
    message = rf"id {bad} at \[1, 2\] is outside .* table of {VOCAB_SIZE}"
    with pytest.raises(ValueError, match=message):
        ENTRIES[entry](model, params, ids_with(bad))


def test_unsigned_ids_keep_all_their_targets():
    """In 8 bits -100 is 156, which may be a token."""
    ids = np.array([[1, 156, 3, 156, 5]])
    for dtype in (np.uint8, np.uint16, np.int64):
        ((tokens, labels),) = labelled([ids.astype(dtype)], 257)
        assert (tokens.dtype, labels.dtype) == (np.int32, np.int32)
        np.testing.assert_array_equal(labels, ids)
        assert count_targets(labels) == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.arange(3), r"token ids are \[B, T\], not \[3\]; give tokens\[None\]"),
        ([1, 2], r"not \[2\]; give tokens\[None\]"),
        (np.zeros((1, 2, 3), int), r"not \[1, 2, 3\]; give an array with a row a sequence"),
        (Batch(np.zeros((2, 3), int), np.zeros((2, 2), int)), r"labels have shape \[2, 2\], but"),
    ],
)
def test_batches_of_another_form_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        list(labelled([batch], VOCAB_SIZE))
    model, params = random_model(0.2)
    with pytest.raises(ValueError, match=message):
        analyze(model, params, [batch], ["head_entropy"])


@pytest.mark.parametrize("entry", sorted(ENTRIES.keys() - {"labels"}))
@pytest.mark.parametrize("dtype", [float, bool])
def test_what_is_no_integer_is_refused(entry, dtype):
    model, params = random_model(0.2)
    with pytest.raises(ValueError, match=rf"integers, not {np.dtype(dtype)}"):
        ENTRIES[entry](model, params, np.zeros((2, 4), dtype))


def test_every_id_of_the_table_is_taken_and_an_ignored_label_is():
    check_token_ids(np.arange(VOCAB_SIZE), VOCAB_SIZE)
    check_token_ids([[0, 1], [2, VOCAB_SIZE - 1]], VOCAB_SIZE)
    check_token_ids(np.full((2, 2), IGNORED_LABEL), VOCAB_SIZE, ignored=IGNORED_LABEL)
    check_token_ids(np.zeros((0, 4)), VOCAB_SIZE)  # the model says that there is no token
    with pytest.raises(ValueError, match="id 50 "):
        check_token_ids(jnp.array([0, 50]), VOCAB_SIZE)


def test_ids_that_are_traced_pass():
    jax.eval_shape(lambda ids: check_token_ids(ids, 1), jnp.array([5]))


def test_torch_ids():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="id 50 at "):
        check_token_ids(torch.tensor([[0, 50]]), VOCAB_SIZE)


def test_classes_for_fewer_ids_than_the_table_has():
    model, params = random_model(0.2)
    metric = class_responses(np.zeros(VOCAB_SIZE - 1, np.int32), 1)
    with pytest.raises(ValueError, match=rf"has {VOCAB_SIZE - 1} entries.* has {VOCAB_SIZE};"):
        analyze(model, params, [ids_with(3)], [metric])


def test_a_single_id() -> None:
    check_token_ids(7, 8)
    with pytest.raises(ValueError, match=r"token id 8 at \[\] is outside the model's table of 8"):
        check_token_ids(8, 8)
