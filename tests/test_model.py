"""Every activation with every normalization, block and way to run the layers; sizes and capture."""

from __future__ import annotations

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nfllm
from nfllm.config import (
    ACTIVATION_NAMES,
    NORMALIZATION_NAMES,
    Architecture,
    Config,
    ConfigError,
    ModelConfig,
    get_config,
)
from nfllm.data.batches import Batch
from nfllm.model import Decoder, capture
from nfllm.model.activations import ACTIVATIONS
from nfllm.model.intermediates import INTERMEDIATES, STATISTICS
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.parameters import Kind, count_parameters, kind_of
from nfllm.training.eval_step import make_eval_step

DEFAULT = Config.from_dict(get_config()).model
TINY = dataclasses.replace(
    DEFAULT,
    num_layers=2,
    num_heads=2,
    embed_dim=8,
    mlp_dim=12,
    context_length=6,
    attention_bias="all",
    mlp_bias=True,
)
ARCHITECTURES = typing.get_args(Architecture)
NORMS = tuple(NORMALIZATION_NAMES)
VOCAB_SIZE = 11
# Distinct tokens, so that a row of the embedding table is the input of one position.
TOKENS_BT = np.asarray([[3, 7, 0, 10, 5]], np.int32)
# Of the tiny programs below only compilation takes time.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def with_architecture(config: ModelConfig, architecture: str) -> ModelConfig:
    fraction = 0.5 if architecture == "gpt_neox" else None
    return dataclasses.replace(config, architecture=architecture, rotary_fraction=fraction)


@functools.cache
def shapes_of(config: ModelConfig, vocab_size: int = VOCAB_SIZE) -> dict:
    model = Decoder(config, vocab_size)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_BT)["params"])


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Far from the initial values, which would hide most mistakes."""
    if config.activation not in ("learnable_leaky_relu", "evonorm_s0"):
        config = dataclasses.replace(config, activation="relu")  # the others have no parameter
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.normal(0.0, 0.5, leaf.shape).astype(np.float32), shapes_of(config)
    )


def norm_size(name: str, width: int) -> int:
    """Number of parameters of a normalization, by hand; a new one needs its own entry."""
    sizes = {
        "none": 0,
        "rmsnorm": width,
        "layernorm": 2 * width,
        "dyt": 2 * width + 1,
        "evonorm_s0": 3 * width,
    }
    of_two_scalars = ("derf", "isru", "arctan", "hardtanh", "expsign", "frozen_layernorm")
    return (sizes | dict.fromkeys(of_two_scalars, 2 * width + 2))[name]


def expected_parameters(config: ModelConfig, vocab_size: int) -> int:
    """The parameter count as a formula of the config."""
    width, hidden, layers = config.embed_dim, config.mlp_width, config.num_layers
    attention = 4 * width**2 + {"none": 0, "qk": 2 * width, "all": 4 * width}[config.attention_bias]
    mlp = 2 * width * hidden + (hidden + width if config.mlp_bias else 0)
    norms = 2 * norm_size(config.normalization, width)
    norms += 2 if config.normalization == "frozen_layernorm" else 0  # before attention: two paths
    norms += 2 * norm_size(config.qk_normalization, width // config.num_heads)
    slopes = {None: layers, "layer": layers, "untied_global": layers, "model": 1}
    tables = 1 + (not config.ties_embeddings)
    positions = config.context_length if config.architecture == "gpt2" else 0
    return (
        layers * (attention + mlp + norms)
        + (slopes[config.slope_sharing] if config.activation == "learnable_leaky_relu" else 0)
        + (3 * layers * hidden if config.activation == "evonorm_s0" else 0)
        + (tables * vocab_size + positions) * width
        + norm_size(config.final_normalization, width)
    )


def count(tree: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class Measured(typing.NamedTuple):
    logits: np.ndarray  # [T, V]
    gradients: dict  # of each position's loss, [T-1, ...]


def measure(config: ModelConfig, params: dict) -> Measured:
    """Logits, and the gradient of the loss at every position with respect to every parameter."""
    model = Decoder(config, VOCAB_SIZE)

    def losses(params):
        logits_TV = model.apply({"params": params}, TOKENS_BT)[0]
        log_probs_TV = jax.nn.log_softmax(logits_TV)
        return -log_probs_TV[jnp.arange(4), TOKENS_BT[0, 1:]], logits_TV

    _, gradient_of, logits_TV = jax.vjp(losses, params, has_aux=True)
    (gradients,) = jax.vmap(gradient_of)(jnp.eye(4))
    return Measured(logits_TV, gradients)


def measure_eagerly(config: ModelConfig, params: dict) -> Measured:
    """Operation by operation: as these are compiled only once, ten times as fast as a program."""
    with jax.disable_jit():
        return jax.tree.map(np.asarray, measure(config, params))


def measure_compiled(config: ModelConfig, params: dict) -> Measured:
    program = jax.jit(measure, static_argnums=0, compiler_options=FAST_COMPILATION)
    return jax.tree.map(np.asarray, program(config, params))


def check(config: ModelConfig, params: dict, measured: Measured) -> None:
    """Shapes, finite gradients of every parameter, and exact causality."""
    assert count(params) == expected_parameters(config, VOCAB_SIZE)
    assert measured.logits.shape == (5, VOCAB_SIZE)
    assert measured.logits.dtype == np.float32
    for path, gradient in jax.tree_util.tree_leaves_with_path(measured.gradients):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(gradient)), f"{name} has a gradient that is not finite"
        learned = kind_of(path) is not Kind.STATISTIC
        assert np.any(gradient) == learned, f"{name}: has it an influence on any loss?"
    if config.architecture == "gpt2":
        input_TSD = measured.gradients["position_embedding"][:, :4]
    else:
        input_TSD = measured.gradients["token_embedding"][:, TOKENS_BT[0, :4]]
    influences_TS = np.any(input_TSD != 0, axis=-1)
    np.testing.assert_array_equal(influences_TS, np.tri(4, dtype=bool))


def assert_close(one: Measured, two: Measured) -> None:
    def compare(path, first, second):
        tolerance = 1e-5 * max(np.abs(first).max(), 1e-3)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance, err_msg=name)

    jax.tree.map_with_path(compare, one, two)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalization", NORMS)
@pytest.mark.parametrize("activation", tuple(ACTIVATION_NAMES))
def test_combination(activation, normalization, architecture):
    config = with_architecture(dataclasses.replace(TINY, num_layers=1), architecture)
    config = dataclasses.replace(config, activation=activation, normalization=normalization)
    params = random_params(config)
    check(config, params, measure_eagerly(config, params))


@pytest.mark.slow
# Compiled, since a loop over the layers and its unrolling differ only as programs. Every activation
# and every pair of normalization and block is among these; what a layer computes is tested above.
@pytest.mark.parametrize(
    ("activation", "normalization", "architecture"),
    [
        (activation, NORMS[i % len(NORMS)], ARCHITECTURES[i % 2])
        for i, activation in enumerate([*tuple(ACTIVATION_NAMES), "relu"])
    ],
)
def test_scanned_layers_equal_unrolled_ones(activation, normalization, architecture):
    config = with_architecture(TINY, architecture)
    config = dataclasses.replace(config, activation=activation, normalization=normalization)
    params = random_params(config)
    scanned, unrolled = (
        measure_compiled(dataclasses.replace(config, scan_layers=scan), params)
        for scan in (True, False)
    )
    check(config, params, scanned)
    check(config, params, unrolled)
    assert_close(scanned, unrolled)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {"qk_normalization": "layernorm"},
        {"qk_normalization": "rmsnorm", "final_normalization": "none"},
        {"qk_normalization": "dyt", "final_normalization": "dyt"},
        {"qk_normalization": "derf", "final_normalization": "derf"},
        {"final_normalization": "rmsnorm", "mlp_bias": False, "attention_bias": "none"},
        {"activation": "learnable_leaky_relu", "slope_sharing": "model"},
        {"activation": "learnable_leaky_relu", "slope_sharing": "untied_global"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_options(changes, architecture):
    config = dataclasses.replace(with_architecture(TINY, architecture), **changes)
    params = random_params(config)
    check(config, params, measure_eagerly(config, params))


def test_registries_hold_every_name():
    assert set(ACTIVATIONS) | {"evonorm_s0"} == set(ACTIVATION_NAMES)  # a module, not a function
    assert set(NORMALIZATIONS) == set(NORMALIZATION_NAMES)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_parameter_count_is_the_formula(data):
    draw = data.draw
    architecture = draw(st.sampled_from(typing.get_args(Architecture)))
    activation = draw(st.sampled_from(tuple(ACTIVATION_NAMES)))
    learned = activation == "learnable_leaky_relu"
    norms = st.sampled_from(tuple(NORMALIZATION_NAMES))
    heads = draw(st.integers(1, 4))
    config = dataclasses.replace(
        DEFAULT,
        architecture=architecture,
        num_layers=draw(st.integers(1, 4)),
        num_heads=heads,
        embed_dim=4 * draw(st.integers(1, 3)) * heads,
        mlp_dim=draw(st.none() | st.integers(1, 9)),
        context_length=draw(st.integers(2, 9)),
        normalization=draw(norms),
        final_normalization=draw(norms),
        qk_normalization=draw(norms.filter(lambda name: name != "frozen_layernorm")),
        activation=activation,
        slope_sharing=draw(st.sampled_from([None, "layer", "model", "untied_global"]))
        if learned
        else None,
        attention_bias=draw(st.sampled_from(["none", "qk", "all"])),
        mlp_bias=draw(st.booleans()),
        tie_embeddings=draw(st.none() | st.booleans()),
        rotary_fraction=0.5 if architecture == "gpt_neox" else None,
        scan_layers=draw(st.booleans()),
        remat=draw(st.booleans()),
    )
    vocab_size = draw(st.integers(1, 9))
    assert count(shapes_of(config, vocab_size)) == expected_parameters(config, vocab_size)


@pytest.mark.parametrize(
    ("sharing", "where", "shape"),
    [
        (None, "blocks", (3,)),
        ("layer", "blocks", (3,)),
        ("untied_global", "blocks", (3,)),
        ("model", "model", ()),
    ],
)
def test_number_of_slopes(sharing, where, shape):
    config = dataclasses.replace(
        TINY, num_layers=3, activation="learnable_leaky_relu", slope_sharing=sharing
    )
    shapes = shapes_of(config)
    found = {"blocks": shapes["blocks"]["mlp"].get("slope"), "model": shapes.get("slope")}
    assert {name: x.shape for name, x in found.items() if x is not None} == {where: shape}


def test_slopes_start_at_the_configured_value():
    params = initial(activation="learnable_leaky_relu", negative_slope=0.25)
    np.testing.assert_array_equal(params["blocks"]["mlp"]["slope"], np.float32([0.25, 0.25]))


@functools.cache
def initial(**changes: object) -> dict:
    config = dataclasses.replace(DEFAULT, num_layers=2, embed_dim=64, **changes)
    model = Decoder(config, 256)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def init():
        return model.init(jax.random.key(1), TOKENS_BT)["params"]

    return init()


@pytest.mark.parametrize(
    ("changes", "embedding", "block"),
    [
        ({"init_std": 0.02, "init_std_scaling": "none"}, 0.02, 0.02),
        ({"init_std": 0.02, "init_std_scaling": "width"}, 0.02, 0.02 * 12**0.5),
        ({"init_std": 0.5, "init_std_scaling": "none"}, 0.5, 0.5),
    ],
)
def test_initial_spread(changes, embedding, block):
    params = initial(**changes)
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    matrices = {
        embedding: [params["token_embedding"], params["position_embedding"]],
        block: [attention["qkv_kernel"], attention["out_kernel"], mlp["in_kernel"]],
    }
    for expected, tensors in matrices.items():
        for tensor in tensors:
            # Four standard errors of an estimate from n numbers.
            assert np.std(tensor) == pytest.approx(expected, rel=4 / (2 * tensor.size) ** 0.5)


def test_layers_start_different_and_alike_in_both_loops():
    unrolled, scanned = initial(scan_layers=False), initial(scan_layers=True)
    jax.tree.map(np.testing.assert_array_equal, unrolled, scanned)
    first, second = unrolled["blocks"]["mlp"]["in_kernel"]
    assert not np.any(first == second)


def test_tokens_without_a_token_are_refused():
    model, params = Decoder(TINY, VOCAB_SIZE), shapes_of(TINY)
    with pytest.raises(ConfigError, match=r"tokens of shape \(1, 0\) hold no token"):
        jax.eval_shape(lambda params: capture(model, params, np.zeros((1, 0), np.int32)), params)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sequence_longer_than_the_context_is_refused_before_compilation(architecture):
    config = with_architecture(TINY, architecture)
    model, params = Decoder(config, VOCAB_SIZE), shapes_of(config)
    tokens_BT = jnp.zeros((1, 7), jnp.int32)
    message = r"a sequence of 7 tokens exceeds model\.context_length=6; cut it, or build the model"
    for function in (
        lambda params: model.apply({"params": params}, tokens_BT),
        lambda params: capture(model, params, tokens_BT),
        lambda params: make_eval_step(model)(params, Batch(tokens_BT, tokens_BT)),
    ):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(function, params)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_capture_is_what_the_model_computes(architecture):
    config = with_architecture(TINY, architecture)
    config = dataclasses.replace(config, normalization="layernorm", activation="gelu")
    model, params = Decoder(config, VOCAB_SIZE), random_params(config)
    tokens_BT = np.concatenate([TOKENS_BT, TOKENS_BT[:, ::-1]])
    captured = nfllm.capture(model, params, tokens_BT)
    sizes = {"L": 2, "B": 2, "T": 5, "S": 5, "H": 2, "K": 4, "D": 8, "F": 12, "V": 11}
    axes = {
        "query": "LBTHK",
        "key": "LBTHK",
        "attention_logits": "LBHTS",
        "attention_probs": "LBHTS",
        "attention_out": "LBTD",
        "mlp_pre": "LBTF",
        "mlp_post": "LBTF",
        "mlp_out": "LBTD",
        "logits": "BTV",
    }
    for name, letters in axes.items():
        assert getattr(captured, name).shape == tuple(sizes[x] for x in letters), name
    assert captured.residual.shape == (3, 2, 5, 8)

    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    scores = jnp.einsum("LBTHK,LBSHK->LBHTS", captured.query, captured.key) / 2
    masked = np.triu(np.ones((5, 5), bool), k=1)
    near(np.where(masked, 0, captured.attention_logits), np.where(masked, 0, scores))
    assert np.all(captured.attention_logits[..., masked] == np.finfo(np.float32).min)
    near(captured.attention_probs, jax.nn.softmax(captured.attention_logits))
    near(captured.mlp_post, ACTIVATIONS["gelu"](captured.mlp_pre, 0.0))
    near(
        captured.residual[1:],
        captured.residual[:-1] + captured.attention_out + captured.mlp_out,
    )
    logits = model.apply({"params": params}, tokens_BT)
    near(captured.logits, logits)
    near(model.apply({"params": params}, captured.residual[-1], method=after_blocks), logits)


def after_blocks(model: Decoder, x_BTD: jax.Array) -> jax.Array:
    return model.head(model.final_norm(x_BTD))


def test_nothing_is_recorded_unless_asked_for():
    """The program is the same with the instrumentation and without."""
    model, params = Decoder(TINY, VOCAB_SIZE), shapes_of(TINY)

    def outputs(mutable):
        return jax.eval_shape(
            lambda params: model.apply({"params": params}, TOKENS_BT, mutable=mutable), params
        )[1]

    assert outputs([]) == {}
    assert outputs([INTERMEDIATES]).keys() == {INTERMEDIATES}
    assert outputs([STATISTICS]).keys() == {STATISTICS}


def test_sixteen_bit_products_keep_float32_parameters_and_logits():
    params = random_params(TINY)

    def logits(dtype):
        model = Decoder(TINY, VOCAB_SIZE, dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(TINY))} == {jnp.dtype("float32")}
        apply = functools.partial(jax.jit, compiler_options=FAST_COMPILATION)(model.apply)
        found = apply({"params": params}, TOKENS_BT)
        assert found.dtype == jnp.float32
        return np.asarray(found)

    exact = logits(jnp.float32)
    for dtype, limit in ((jnp.bfloat16, 0.05), (jnp.float16, 0.01)):
        error = np.abs(logits(dtype) - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < limit


@pytest.mark.parametrize(
    ("plain", "measuring"),
    [
        ({"normalization": "layernorm"}, {"normalization": "frozen_layernorm"}),
        ({"mlp_weight_norm": "hypersphere"}, {"mlp_weight_norm": "spectral"}),
    ],
)
def test_what_is_measured_is_no_parameter(plain, measuring):
    def params_of(changes):
        model = Decoder(dataclasses.replace(TINY, **changes), 11)
        tokens_BT = jnp.zeros((1, 4), jnp.int32)
        return jax.eval_shape(model.init, jax.random.key(0), tokens_BT)["params"]

    params, more = params_of(plain), params_of(measuring)
    assert len(jax.tree.leaves(more)) > len(jax.tree.leaves(params))
    assert count_parameters(more) == count_parameters(params)
    assert count_parameters(params) == sum(x.size for x in jax.tree.leaves(params))
    with_objective = {**params, "objective": {"entropy_threshold": jnp.ones((2, 2))}}
    assert count_parameters(with_objective) == count_parameters(params)
