"""The formulations of attention give the same numbers, as different programs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn_lowering
from lowered import lowered_step
from random_model import random_model
from training_parts import make_parts, random_batch, small_config

from nfllm.config import ConfigError
from nfllm.model import attention_implementation
from nfllm.model.attention_implementation import (
    check_implementation,
    choose_implementation,
    implementation_of_step,
    queries_per_block,
)
from nfllm.model.capture import capture
from nfllm.training.loss import next_token_loss
from nfllm.training.telemetry import make_probe

TOKENS_BT = random_batch(0, sequences=2).tokens


def _loss_and_gradients(implementation, **model):
    decoder, params = random_model(0.3, attention_implementation=implementation, **model)

    def loss(params):
        return next_token_loss(decoder.apply({"params": params}, TOKENS_BT), TOKENS_BT)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.usefixtures("blocks_of_five_queries")
@pytest.mark.parametrize(
    ("implementation", "model"),
    [
        ("blocks", {"attention_bias": "all", "qk_normalization": "layernorm"}),
        ("xla", {"architecture": "gpt_neox", "scan_layers": True}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("xla", {"attention_bias": "all", "qk_normalization": "layernorm"}),
                ("blocks", {"architecture": "gpt_neox", "scan_layers": True}),
                ("blocks", {"remat": True}),
                ("xla", {"remat": True}),
            )
        ),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_explicit_form(implementation, model):
    expected = _loss_and_gradients("explicit", **model)
    found = _loss_and_gradients(implementation, **model)
    found, expected = (
        np.concatenate([*map(np.ravel, jax.tree.leaves(tree))]) for tree in (found, expected)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * np.abs(expected).max())


def _lowered(implementation, **model):
    return lowered_step(small_config(model={"attention_implementation": implementation, **model}))


@pytest.mark.usefixtures("blocks_of_five_queries")
def test_every_choice_is_a_program_of_its_own():
    assert len({_lowered(name) for name in ("explicit", "blocks", "xla")}) == 3


@pytest.mark.usefixtures("blocks_of_five_queries")
def test_blocks_hold_no_whole_map_and_no_key_that_none_of_their_queries_sees():
    program = _lowered("blocks")
    for shape, count in {"5x5": 1, "5x10": 1, "2x12": 1, "12x12": 0}.items():
        assert bool(re.search(rf"x{shape}xf32>", program)) == count, shape


@pytest.mark.parametrize(
    ("backend", "dtype", "changes", "chosen"),
    [
        ("cpu", "float32", {}, "blocks"),
        ("cpu", "bfloat16", {}, "blocks"),
        ("cpu", "float16", {}, "explicit"),
        ("cpu", "float32", {"attention_dropout": 0.1}, "explicit"),
        ("gpu", "bfloat16", {"context_length": 1024}, "cudnn"),
        ("gpu", "bfloat16", {"context_length": 8}, "explicit"),
        ("gpu", "float32", {"context_length": 1024}, "explicit"),
        ("gpu", "float16", {"context_length": 1024}, "explicit"),
        ("gpu", "bfloat16", {"context_length": 1024, "num_heads": 4}, "explicit"),
        ("gpu", "bfloat16", {"context_length": 1024, "attention_dropout": 0.1}, "explicit"),
        ("tpu", "bfloat16", {"context_length": 1024}, "explicit"),
    ],
    ids=str,
)
def test_auto_is_what_measured_fastest(backend, dtype, changes, chosen, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention_implementation, "_on_nvidia", lambda: backend == "gpu")
    config = small_config(model=changes).model
    assert config.attention_implementation == "auto"
    assert choose_implementation(config, jnp.dtype(dtype)) == chosen


@pytest.mark.parametrize(
    ("chosen", "with_entropy", "runs"),
    [("cudnn", True, "explicit"), ("cudnn", False, "cudnn"), ("blocks", True, "blocks")],
)
def test_a_step_with_entropy_runs_an_attention_that_has_logits(chosen, with_entropy, runs):
    config = small_config(model={"attention_implementation": chosen}).model
    dtype = jnp.dtype("bfloat16")
    assert implementation_of_step(config, dtype, with_entropy=with_entropy) == runs


@pytest.mark.parametrize(
    ("length", "block"), [(12, 128), (128, 128), (1024, 128), (1025, 129), (4096, 512)]
)
def test_there_are_at_most_eight_blocks(length, block):
    assert queries_per_block(length) == block


@pytest.mark.parametrize("scan_layers", [False, True])
def test_cudnn_keeps_no_map_of_queries_and_keys(scan_layers, monkeypatch):
    """Lowered for a GPU that is not here: a layer has a fused call forward and one backward."""
    monkeypatch.setattr(cudnn_lowering, "check_cudnn_version", lambda: 91_000)

    def program(implementation):
        model = {"attention_implementation": implementation, "scan_layers": scan_layers}
        return lowered_step(small_config(model=model, training={"dtype": "bfloat16"}), "cuda")

    fused, explicit = program("cudnn"), program("explicit")
    layers = 1 if scan_layers else 2  # the body of a loop, or both
    assert fused.count("@__cudnn$fmhaSoftmax(") == layers
    assert fused.count("@__cudnn$fmhaSoftmaxBackward(") == layers
    assert "x12x12x" in explicit
    assert "x12x12x" not in fused


@pytest.mark.usefixtures("blocks_of_five_queries")
def test_what_is_recorded_does_not_depend_on_it():
    _, params = random_model(0.3)
    models = {
        name: make_parts(small_config(model={"attention_implementation": name})).model
        for name in ("explicit", "blocks", "cudnn")
    }
    for record in (
        lambda model: make_probe(model)(params, jnp.asarray(TOKENS_BT)),
        lambda model: capture(model, params, TOKENS_BT),
    ):
        jax.tree.map(np.testing.assert_array_equal, *map(record, models.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_implementation": "flash"}, r"unknown attention_implementation 'flash'"),
        (
            {"attention_implementation": "xla", "attention_dropout": 0.1},
            r"'xla' has no dropout, but model.attention_dropout=0.1; use 'auto'",
        ),
        (
            {"attention_implementation": "blocks", "attention_dropout": 0.1},
            r"'blocks' has no dropout, but model.attention_dropout=0.1; use 'auto'",
        ),
        (
            {"attention_implementation": "cudnn", "num_heads": 4},
            r"multiple of 8 .*embed_dim=16 over model.num_heads=4 gives 4",
        ),
    ],
)
def test_impossible_choices_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_config(model=changes)


def test_entropy_of_every_step_needs_logits():
    model = {"attention_implementation": "xla"}
    with pytest.raises(ConfigError, match=r"telemetry.entropy_every_step=True needs attention lo"):
        small_config(model=model, telemetry={"entropy_every_step": True})


def test_cudnn_is_refused_where_there_is_none():
    config = small_config(model={"attention_implementation": "cudnn"}).model
    with pytest.raises(ConfigError, match=r"'cudnn' cannot run in bfloat16 on a CPU; it needs"):
        check_implementation(config, jnp.dtype("bfloat16"))
    for other in ("auto", "explicit", "blocks", "xla"):
        check_implementation(
            dataclasses.replace(config, attention_implementation=other), jnp.dtype("float32")
        )
