"""The optimizer chain: decay by name, clipping by hand, HF AdamW against its recurrences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm.config import Config, get_config
from nfllm.model import Decoder
from nfllm.model.parameters import KINDS, Kind
from nfllm.training.hf_adamw import hf_adamw
from nfllm.training.optimizer import (
    clip_by_global_norm,
    decay_mask,
    make_optimizer,
    split_by_decay,
)

DEFAULT = Config.from_dict(get_config())


def shapes_of(**changes):
    config = dataclasses.replace(DEFAULT.model, num_layers=3, **changes)
    model = Decoder(config, 11)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_BT)["params"])


def constant(rate):
    return lambda count: jnp.asarray(rate, jnp.float32)


def test_what_is_declared_of_every_name():
    """Only matrices decay; what is measured is not learned."""
    names = {kind: {name for name in KINDS if KINDS[name] is kind} for kind in Kind}
    embeddings = {"token_embedding", "position_embedding", "head_embedding"}
    kernels = {name for name in KINDS if name.endswith("kernel")}
    directions = {name for name in KINDS if name.endswith("direction")}
    assert names[Kind.DECAYED] == embeddings | kernels
    assert names[Kind.STATISTIC] == {"norm_gate", "sigma"} | directions
    assert names[Kind.SLOPE] == {"slope"}


def test_kernels_and_embeddings_decay_and_nothing_else():
    params = shapes_of(
        normalization="derf",
        final_normalization="layernorm",
        qk_normalization="rmsnorm",
        attention_bias="all",
        mlp_bias=True,
        tie_embeddings=False,
        activation="learnable_leaky_relu",
    )
    decayed, undecayed = split_by_decay(params, decay_slopes=False)
    assert sorted(decayed) == [
        "blocks.attention.out_kernel",
        "blocks.attention.qkv_kernel",
        "blocks.mlp.in_kernel",
        "blocks.mlp.out_kernel",
        "head_embedding",
        "position_embedding",
        "token_embedding",
    ]
    norm = ["alpha", "bias", "scale", "shift"]
    assert sorted(undecayed) == [
        "blocks.attention.key_norm.scale",
        "blocks.attention.out_bias",
        "blocks.attention.qkv_bias",
        "blocks.attention.query_norm.scale",
        *(f"blocks.attention_norm.{name}" for name in norm),
        "blocks.mlp.in_bias",
        "blocks.mlp.out_bias",
        "blocks.mlp.slope",
        *(f"blocks.mlp_norm.{name}" for name in norm),
        "final_norm.bias",
        "final_norm.scale",
    ]


@pytest.mark.parametrize("sharing", ["layer", "model", "untied_global"])
@pytest.mark.parametrize("decay_slopes", [True, False])
def test_slopes_decay_exactly_as_their_option_says(sharing, decay_slopes):
    """Without a gradient, Adam moves nothing: what is left is decay, 1 - rate * 0.1 a step."""
    params = shapes_of(activation="learnable_leaky_relu", slope_sharing=sharing)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), params)
    config = dataclasses.replace(DEFAULT.optimizer, weight_decay=0.1, decay_slopes=decay_slopes)
    optimizer = make_optimizer(config, constant(0.2))

    @jax.jit
    def updated(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.apply_updates(
            params, optimizer.update(zeros, optimizer.init(params), params)[0]
        )

    params = updated(params)
    slope = params["slope"] if sharing == "model" else params["blocks"]["mlp"]["slope"]
    assert slope.size == (1 if sharing == "model" else 3)
    np.testing.assert_allclose(slope, 0.5 * 0.98 if decay_slopes else 0.5, rtol=1e-6)
    np.testing.assert_allclose(params["token_embedding"], 0.5 * 0.98, rtol=1e-6)
    np.testing.assert_array_equal(params["final_norm"]["scale"], 0.5)


@pytest.mark.parametrize("variant", ["adamw", "hf_adamw"])
def test_slopes_are_trained(variant):
    params = {"slope": jnp.float32(0.01), "kernel": jnp.ones(2)}
    config = dataclasses.replace(DEFAULT.optimizer, variant=variant, clip_norm=0.0, epsilon=1e-12)
    optimizer = make_optimizer(config, constant(0.001))
    gradients = {"slope": jnp.float32(-2.0), "kernel": jnp.zeros(2)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["slope"], 0.001, rtol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "limit", "expected"),
    [
        ([3.0, 4.0], 1.0, [3 / 5.000001, 4 / 5.000001]),
        ([0.3, 0.4], 1.0, [0.3, 0.4]),
        # Where the norm is about 1e-6, so is what torch adds to it: half remains.
        ([6e-7, 8e-7], 1e-6, [3e-7, 4e-7]),
        ([0.0, 0.0], 1.0, [0.0, 0.0]),
    ],
)
def test_clipping_by_hand(gradient, limit, expected):
    clip = clip_by_global_norm(limit)
    tree = {"a": jnp.asarray(gradient[0]), "b": [jnp.asarray(gradient[1])]}
    clipped, _ = clip.update(tree, clip.init(tree))
    np.testing.assert_allclose([clipped["a"], clipped["b"][0]], expected, rtol=1e-6)


@pytest.mark.parametrize(("clip_norm", "moment"), [(1.0, 0.06), (0.0, 0.3)])
def test_clipping_comes_before_the_moments(clip_norm, moment):
    params = {"kernel": jnp.zeros(2)}
    config = dataclasses.replace(
        DEFAULT.optimizer, variant="hf_adamw", clip_norm=clip_norm, beta1=0.9
    )
    optimizer = make_optimizer(config, constant(0.1))
    _, state = optimizer.update({"kernel": jnp.asarray([3.0, 4.0])}, optimizer.init(params), params)
    mu = optax.tree.get(state, "mu")["kernel"]
    np.testing.assert_allclose(mu, [moment, moment * 4 / 3], rtol=1e-5)


def test_first_hf_step_by_hand():
    """g = 2: m = 0.2, v = 0.004, size = 0.1 sqrt(0.001) / 0.1; the moved parameter decays."""
    optimizer = hf_adamw(
        constant(0.1), b1=0.9, b2=0.999, eps=0.01, weight_decay=0.5, mask=lambda params: [True]
    )
    params = [jnp.asarray([1.0])]
    updates, _ = optimizer.update([jnp.asarray([2.0])], optimizer.init(params), params)
    moved = 1.0 - 0.1 * 0.001**0.5 / 0.1 * 0.2 / (0.004**0.5 + 0.01)
    np.testing.assert_allclose(1.0 + updates[0], moved - 0.1 * 0.5 * moved, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    magnitude=st.floats(1e-9, 1e3),
    beta1=st.floats(0.0, 0.99),
    beta2=st.floats(0.5, 0.9999),
    epsilon=st.floats(1e-10, 1e-2),
    decay=st.floats(0.0, 0.5),
)
def test_hf_adamw_follows_its_recurrences(seed, magnitude, beta1, beta2, epsilon, decay):
    generator = np.random.default_rng(seed)
    gradients = magnitude * generator.normal(size=(6, 4))
    rates = generator.uniform(0, 0.1, 6)
    expected = generator.normal(size=4)
    params = {"kernel": jnp.asarray(expected, jnp.float32)}
    optimizer = hf_adamw(
        lambda count: jnp.asarray(rates, jnp.float32)[count],
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=decay,
        mask=lambda params: decay_mask(params, decay_slopes=False),
    )
    state = optimizer.init(params)
    m = v = np.zeros(4)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        updates, state = optimizer.update(
            {"kernel": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        params = optax.apply_updates(params, updates)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        size = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        expected = expected - size * m / (np.sqrt(v) + epsilon)
        expected = expected - rate * decay * expected
        np.testing.assert_allclose(params["kernel"], expected, rtol=2e-5, atol=2e-5)


def test_the_two_variants_differ_where_epsilon_matters():
    """At t = 1 the epsilon of hf_adamw weighs 1 / sqrt(1 - 0.999) = 31.6 times as much."""
    params = {"bias": jnp.zeros(1)}
    gradient = {"bias": jnp.asarray([1e-6])}
    moved = {}
    for variant in ("adamw", "hf_adamw"):
        config = dataclasses.replace(
            DEFAULT.optimizer, variant=variant, beta2=0.999, epsilon=1e-6, clip_norm=0.0
        )
        optimizer = make_optimizer(config, constant(1.0))
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        moved[variant] = float(updates["bias"][0])
    assert moved["adamw"] == pytest.approx(-1 / 2, rel=1e-4)
    assert moved["hf_adamw"] == pytest.approx(-1 / (1 + 0.001**-0.5), rel=1e-4)
