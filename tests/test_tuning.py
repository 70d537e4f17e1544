"""Every choice of `Tuning` changes the program of a step, and its numbers only by rounding."""

import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from lowered import lowered_step
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

from nfllm.model.tuning import TUNINGS, Tuning, tuning
from nfllm.trainer.placement import Placement

pytestmark = pytest.mark.slow

OTHER = {
    "attention": "xla",
    "attention_from": 13,
    "scan_layers": True,
    "recompute_norms": False,
    "recompute_activations": False,
    "plain_loss_bytes": 2**30,
    "tile_logits": 24 * VOCAB_SIZE,
    "tile_logits_16_bit": 24 * VOCAB_SIZE,
    "micro_batch_tokens": None,
}
PLAIN = 2**10


FIELDS = [field.name for field in dataclasses.fields(Tuning)]
BASE = dataclasses.replace(
    TUNINGS["cpu"], micro_batch_tokens=24, tile_logits_16_bit=None, plain_loss_bytes=PLAIN
)


class Made(NamedTuple):
    """What comes of some choices: the lowered step, three losses, and its micro-batches."""

    program: str
    losses: list[float]
    micro_batches: int


@functools.cache
def _made(choices, dtype):
    with mock.patch.dict(TUNINGS, {"cpu": choices}):
        config = small_config(
            model={"normalization": "layernorm", "activation": "gelu"},
            training={"gradient_accumulation": None, "dtype": dtype},
        )
        parts, placement = make_parts(config), Placement(config, jax.devices()[:1])
        state = placement.init(parts.init, jax.random.key(0))
        step = placement.train_step(parts.train_step)
        losses = []
        for number in range(3):
            state, metrics = step(state, placement.put_train(random_batch(number)))
            losses.append(float(metrics.loss_nats))
        return Made(lowered_step(config), losses, placement.micro_batches)


@pytest.mark.usefixtures("blocks_of_five_queries")
@pytest.mark.parametrize("name", FIELDS)
def test_a_choice_changes_the_program_and_not_the_losses(name):
    dtype, tolerance = ("bfloat16", 1e-2) if name.endswith("16_bit") else ("float32", 1e-5)
    base = _made(BASE, dtype)
    other = _made(dataclasses.replace(BASE, **{name: OTHER[name]}), dtype)
    if name == "micro_batch_tokens":  # the placement splits the batch, not the step
        assert base.micro_batches > other.micro_batches == 1
    else:
        assert base.program != other.program
    np.testing.assert_allclose(base.losses, other.losses, rtol=tolerance)


def test_the_choices_are_those_of_the_backend(monkeypatch):
    found = []
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found.append(tuning())
    assert [choice.attention for choice in found] == ["blocks", "cudnn", "explicit"]
