"""Point functions as published: alpha by site, shift, gain of the embedding, saturation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import random_batch, small_config

import nfllm
from nfllm.config import ConfigError
from nfllm.config.names import POINT_FUNCTIONS
from nfllm.model import Decoder
from nfllm.model.pointwise import FUNCTIONS
from nfllm.training.optimizer import split_by_decay
from nfllm.training.telemetry import make_probe

pytestmark = pytest.mark.slow

EVERYWHERE = {"normalization": "dyt", "final_normalization": "dyt", "qk_normalization": "derf"}


def decoder(**model):
    config = dataclasses.replace(small_config().model, **model)
    return Decoder(config, 50)


def start(model):
    with jax.disable_jit():
        return model.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]


def test_alpha_starts_by_site_as_published():
    """DyT LLaMA 7B: 0.8 before attention, 0.2 before the MLP and the head; else 0.5."""
    published = {"dyt_alpha_attention": 0.8, "dyt_alpha_mlp": 0.2, "dyt_alpha_final": 0.2}
    params = start(decoder(**EVERYWHERE, **published))
    blocks = params["blocks"]
    np.testing.assert_array_equal(blocks["attention_norm"]["alpha"], np.float32([0.8, 0.8]))
    np.testing.assert_array_equal(blocks["mlp_norm"]["alpha"], np.float32([0.2, 0.2]))
    np.testing.assert_array_equal(params["final_norm"]["alpha"], np.float32(0.2))
    np.testing.assert_array_equal(blocks["attention"]["query_norm"]["alpha"], np.float32([0.5] * 2))


@pytest.mark.parametrize("placement", ["post", "peri", "output"])
def test_all_point_functions_of_a_branch_start_alike(placement):
    placed = {"norm_placement": placement, "normalization": "dyt", "num_layers": 1}
    params = start(decoder(**placed, dyt_alpha_attention=0.8, dyt_alpha_mlp=0.2))
    norms = {name: part for name, part in params["blocks"].items() if "alpha" in part}
    assert norms
    for name, norm in norms.items():
        expected = 0.8 if name.startswith("attention") else 0.2
        np.testing.assert_array_equal(norm["alpha"], np.float32([expected]), err_msg=name)


@pytest.mark.parametrize(
    ("name", "shift", "expected"),
    [("dyt", None, False), ("derf", None, True), ("dyt", True, True), ("isru", False, False)],
)
def test_the_shift_is_as_published_unless_it_is_chosen(name, shift, expected):
    norm = shapes(decoder(normalization=name, dyt_shift=shift))["blocks"]["mlp_norm"]
    assert ("shift" in norm) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dyt", 0.7615941560),
        ("derf", 0.8427007929),
        ("isru", 0.7071067812),
        ("arctan", 0.5),
        ("hardtanh", 1.0),
        ("expsign", 0.6321205588),
    ],
)
def test_values_at_one_and_far_out(name, expected):
    function = FUNCTIONS[name]
    found = [float(function(jnp.float32(x))) for x in (1.0, -1.0, 0.0, 3e38, -3e38)]
    np.testing.assert_allclose(found, [expected, -expected, 0, 1, -1], rtol=2e-7)
    assert np.isfinite(jax.grad(function)(jnp.float32(3e38)))
    if name == "hardtanh":  # at its ends as in torch
        assert float(jax.grad(function)(jnp.float32(1.0))) == 1.0
    assert set(FUNCTIONS) == set(POINT_FUNCTIONS)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_the_gain_of_the_embedding_starts_at_the_root_of_its_width(architecture):
    """sqrt(64) = 8 times the sum of the tables, to the bit; the head does not see it."""
    changes = {"architecture": architecture, "embed_dim": 64, "num_layers": 1}
    plain, scaled = (decoder(**changes, embedding_scale=s) for s in ("none", "learned"))
    params = start(scaled)
    assert float(params["embedding_gain"]) == 8.0
    tokens_BT = jnp.array([[1, 5, 3]])
    x = jnp.ones((1, 1, 64))
    with jax.disable_jit():
        first = [nfllm.capture(m, params, tokens_BT).residual[0] for m in (scaled, plain)]
    np.testing.assert_array_equal(first[0], 8 * first[1])
    heads = [m.apply({"params": params}, x, method=m.head) for m in (scaled, plain)]
    np.testing.assert_array_equal(*heads)


def test_the_gain_of_the_embedding_does_not_decay():
    _, undecayed = split_by_decay(shapes(decoder(embedding_scale="learned")), decay_slopes=True)
    assert "embedding_gain" in undecayed


def test_saturation_is_strict():
    found = nfllm.analysis.saturation([-3.0, -1.0, 0.0, 2.0, 2.5])
    np.testing.assert_allclose(found, 2 / 5)
    by_row = nfllm.analysis.saturation([[-3.0, 1.0], [0.0, jnp.nan]], 0.5, keep=1)
    np.testing.assert_array_equal(by_row, [1.0, np.nan])


def by_hand(captured, params, site):
    """Share of |alpha x + shift| > 2, [L, B], of what a sequential block of GPT-2 normalizes."""
    if site == "final":
        x, norm = captured.residual[-1:], params["final_norm"]
    elif site == "attention":
        x, norm = captured.residual[:-1], params["blocks"]["attention_norm"]
    else:
        x = captured.residual[:-1] + captured.attention_out
        norm = params["blocks"]["mlp_norm"]
    alpha, shift = (np.float64(norm[key]).reshape(-1, 1, 1, 1) for key in ("alpha", "shift"))
    return (np.abs(alpha * np.float64(x) + shift) > 2).mean((2, 3))


def test_saturation_is_measured_by_site_in_a_stream_and_by_telemetry():
    model = decoder(**EVERYWHERE, dyt_alpha_attention=2.0, dyt_shift=True, init_std=1.0)
    params = start(model)
    params["blocks"]["attention_norm"]["shift"] = jnp.float32([0.5, -1.0])
    params["final_norm"]["alpha"] = jnp.float32(0.1)
    params["blocks"]["mlp_norm"]["alpha"] = jnp.float32([0.1, 0.05])
    tokens_BT = random_batch(0).tokens
    with jax.disable_jit():
        captured = nfllm.capture(model, params, tokens_BT)
    halves = [tokens_BT[:3], tokens_BT[3:]]
    streamed = nfllm.analyze(model, params, halves, ["saturation"])["saturation"]
    probed = make_probe(model)(params, tokens_BT)
    assert set(streamed) == {"attention", "mlp", "query", "key", "final"}
    for site in ("attention", "mlp", "final"):
        expected_LB = by_hand(captured, params, site)
        assert 0.01 < expected_LB.mean() < 0.99
        expected = expected_LB[0] if site == "final" else expected_LB
        np.testing.assert_allclose(captured.saturation[site], expected, atol=1e-3)
        np.testing.assert_allclose(streamed[site].mean, expected.mean(-1), atol=1e-3)
        np.testing.assert_allclose(probed[f"saturation_{site}"], expected.mean(-1), atol=1e-3)
    np.testing.assert_array_equal(probed["alpha_attention"], [2, 2])
    np.testing.assert_array_equal(probed["alpha_final"], np.float32(0.1))
    assert probed["saturation_query"].shape == (2,)


def test_without_a_point_function_there_is_no_saturation():
    model = decoder(normalization="layernorm")
    found = nfllm.analyze(model, start(model), [random_batch(0).tokens], ["saturation"])
    assert found == {"saturation": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dyt_alpha_mlp": 0.2}, r"model\.dyt_alpha_mlp=0\.2 has no effect"),
        (
            {"attention_normalization": "dyt", "dyt_alpha_mlp": 0.2},
            r"model\.dyt_alpha_mlp=0\.2 has no effect",
        ),
        ({"dyt_shift": False}, r"model\.dyt_shift=False has no effect"),
        ({"normalization": "dyt", "dyt_alpha_attention": 0.0}, "must be greater than 0"),
    ],
)
def test_keys_without_their_point_function_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        decoder(**changes)
