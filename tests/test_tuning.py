"""Every choice of `Tuning` changes the program of a step, and its numbers only by rounding."""

import dataclasses

import jax
import numpy as np
import pytest
from lowered import lowered_step
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

from nfllm.model.tuning import TUNINGS, Tuning, tuning
from nfllm.trainer.placement import Placement

MODEL = {"normalization": "layernorm", "activation": "gelu"}
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


@pytest.fixture(params=[field.name for field in dataclasses.fields(Tuning)])
def changed(request, monkeypatch):
    base = dataclasses.replace(
        TUNINGS["cpu"], micro_batch_tokens=24, tile_logits_16_bit=None, plain_loss_bytes=PLAIN
    )
    monkeypatch.setitem(TUNINGS, "cpu", base)

    def change():
        value = OTHER[request.param]
        monkeypatch.setitem(TUNINGS, "cpu", dataclasses.replace(base, **{request.param: value}))

    return request.param, change


def _placement(config):
    return Placement(config, jax.devices()[:1])


def _losses(config):
    parts, parallel = make_parts(config), _placement(config)
    state, step = (
        parallel.init(parts.init, jax.random.key(0)),
        parallel.train_step(parts.train_step),
    )
    losses = []
    for number in range(3):
        state, metrics = step(state, parallel.put_train(random_batch(number)))
        losses.append(float(metrics.loss_nats))
    return losses


@pytest.mark.usefixtures("blocks_of_five_queries")
def test_a_choice_changes_the_program_and_not_the_losses(changed):
    name, change = changed
    dtype, tolerance = ("bfloat16", 1e-2) if name.endswith("16_bit") else ("float32", 1e-5)
    config = small_config(model=MODEL, training={"gradient_accumulation": None, "dtype": dtype})
    programs, losses, parts = [lowered_step(config)], [_losses(config)], [_placement(config)]
    change()
    programs.append(lowered_step(config))
    losses.append(_losses(config))
    parts.append(_placement(config))
    if name == "micro_batch_tokens":  # the placement splits the batch, not the step
        assert parts[0].micro_batches > parts[1].micro_batches == 1
    else:
        assert programs[0] != programs[1]
    np.testing.assert_allclose(*losses, rtol=tolerance)


def test_the_choices_are_those_of_the_backend(monkeypatch):
    found = []
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found.append(tuning())
    assert [choice.attention for choice in found] == ["blocks", "cudnn", "explicit"]
