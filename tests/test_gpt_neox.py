"""The GPT-NeoX block: rotary embedding, parallel residual, its own head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfllm
from nfllm.config import Config, ConfigError, get_config
from nfllm.model import Decoder
from nfllm.model.rotary import rotate

CONFIG = dataclasses.replace(
    Config.from_dict(get_config()).model,
    architecture="gpt_neox",
    num_layers=2,
    num_heads=2,
    embed_dim=16,
    mlp_dim=12,
    context_length=6,
    rotary_fraction=0.5,
    attention_bias="all",
    mlp_bias=True,
)


def random_states(heads=2, width=8, length=5):
    return np.random.default_rng(0).normal(size=(2, length, heads, width)).astype(np.float32)


@pytest.mark.parametrize(("rotary_dim", "base"), [(8, 10_000.0), (4, 100.0), (2, 10.0)])
def test_rotation_is_a_product_with_complex_numbers(rotary_dim, base):
    x = random_states()
    half = rotary_dim // 2
    z = x[..., :half].astype(np.float64) + 1j * x[..., half:rotary_dim]
    angles = np.arange(5)[:, None] / base ** (2 * np.arange(half) / rotary_dim)
    z = z * np.exp(1j * angles)[None, :, None, :]
    rotated = rotate(jnp.asarray(x), rotary_dim, base)
    expected = np.concatenate([z.real, z.imag, x[..., rotary_dim:]], axis=-1)
    np.testing.assert_allclose(rotated, expected, rtol=0, atol=1e-6)


def test_features_beyond_the_rotary_width_and_the_first_position_pass_unchanged():
    x = random_states()
    rotated = np.asarray(rotate(jnp.asarray(x), 4, 10_000.0))
    np.testing.assert_array_equal(rotated[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
    assert np.all(np.any(rotated[:, 1:, :, :4] != x[:, 1:, :, :4], axis=-1))


def test_scores_depend_on_the_distance_only():
    vectors = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    q_TK, k_TK = (
        np.asarray(rotate(jnp.tile(x, (1, 9, 1, 1)), 8, 10_000.0))[0, :, 0] for x in vectors
    )
    scores_TS = q_TK @ k_TK.T
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores_TS, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-5)
    assert np.ptp(scores_TS) > 1


def test_sixteen_bit_types_are_rotated_in_float32():
    """The angle of position 4001 is off by whole turns in bfloat16."""
    x = jnp.ones((1, 4002, 1, 2), jnp.bfloat16)
    rotated = rotate(x, 2, 10_000.0)
    assert rotated.dtype == jnp.bfloat16
    expected = [np.cos(4001) - np.sin(4001), np.cos(4001) + np.sin(4001)]
    np.testing.assert_allclose(rotated[0, 4001, 0].astype(jnp.float32), expected, atol=0.01)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("normalization", ["layernorm", "none"])
def test_where_the_mlp_reads(architecture, normalization):
    """GPT-NeoX: the block's input; GPT-2 and Llama: that plus what attention added."""
    config = dataclasses.replace(
        CONFIG,
        architecture=architecture,
        normalization=normalization,
        rotary_fraction=None if architecture == "gpt2" else 0.5,
    )
    model = Decoder(config, 11)
    tokens_BT = jnp.asarray([[1, 4, 2, 8, 5]])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_BT)["params"])
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape)), shapes)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    captured = nfllm.capture(model, params, tokens_BT)
    read_LBTD = np.asarray(captured.residual[:-1])
    if architecture != "gpt_neox":
        read_LBTD = read_LBTD + captured.attention_out
    blocks = params["blocks"]
    if normalization == "layernorm":
        centred = read_LBTD - read_LBTD.mean(-1, keepdims=True)
        read_LBTD = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)
        scale, bias = (np.asarray(blocks["mlp_norm"][x])[:, None, None] for x in ("scale", "bias"))
        read_LBTD = scale * read_LBTD + bias
    else:
        assert not {"attention_norm", "mlp_norm"} & set(blocks)
    expected = np.einsum("LBTD,LDF->LBTF", read_LBTD, blocks["mlp"]["in_kernel"])
    expected += np.asarray(blocks["mlp"]["in_bias"])[:, None, None]
    np.testing.assert_allclose(captured.mlp_pre, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "tie", "tables"),
    [
        ("gpt_neox", None, {"token_embedding", "head_embedding"}),
        ("gpt_neox", True, {"token_embedding"}),
        ("llama", None, {"token_embedding", "head_embedding"}),
        ("llama", True, {"token_embedding"}),
        ("gpt2", None, {"token_embedding", "position_embedding"}),
        ("gpt2", False, {"token_embedding", "position_embedding", "head_embedding"}),
    ],
)
def test_tables(architecture, tie, tables):
    fraction = None if architecture == "gpt2" else 0.5
    config = dataclasses.replace(
        CONFIG, architecture=architecture, tie_embeddings=tie, rotary_fraction=fraction
    )
    model = Decoder(config, 11)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    )
    assert {name for name in shapes if name.endswith("embedding")} == tables


def test_share_of_a_head_that_is_rotated_where_none_is_set():
    for architecture, width in {"gpt2": 0, "gpt_neox": 2, "llama": 8}.items():
        config = dataclasses.replace(CONFIG, architecture=architecture, rotary_fraction=None)
        assert config.rotary_dim == width


@pytest.mark.parametrize(("fraction", "width"), [(0.4, 3), (0.1, 0), (0.7, 5)])
def test_rotary_widths_that_are_no_pairs_are_refused(fraction, width):
    message = rf"rotary_fraction gives a rotary width of {width} of head width 8"
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, rotary_fraction=fraction)
