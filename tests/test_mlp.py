"""Fused, scaled, pruned and absent MLPs (arXiv 2410.13060, 2501.03489)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_model
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

import nfllm
from nfllm.config import ConfigError, ModelConfig
from nfllm.model.cache import CACHE, empty_cache, move
from nfllm.model.decoder import Decoder
from nfllm.model.patch import Patch

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 9)).astype(np.int32)
LINEAR = {"activation": "identity"}
FUSED = {**LINEAR, "mlp": "fused"}
SCALED = {"mlp_scaling": "learned"}
PRUNED = {"num_layers": 3, "mlp_pruned_layers": 2}
EVERYTHING = {**FUSED, **SCALED, **PRUNED, "softmax_temperature": "head_position"}


def logits(model: Decoder, params: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, TOKENS))


def size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_fused_mlp_is_the_product_of_the_two_matrices() -> None:
    plain, params = random_model(0.3, **LINEAR)
    fused, _ = random_model(0.3, **FUSED)
    mlp = params["blocks"]["mlp"]
    blocks = {**params["blocks"], "mlp": {"kernel": mlp["in_kernel"] @ mlp["out_kernel"]}}
    found = logits(fused, {**params, "blocks": blocks})
    np.testing.assert_allclose(found, logits(plain, params), atol=2e-5)
    assert np.ptp(found) > 1


@pytest.mark.parametrize(("mlp", "groups"), [("two_layer", 1), ("two_layer", 4), ("gated", 2)])
def test_evonorm_between_the_matrices(mlp: str, groups: int) -> None:
    """x sigmoid(v x) / sqrt(Var + epsilon) * scale + bias over the hidden layer of each token."""
    options = {"mlp": mlp, "activation": "evonorm_s0", "normalization_groups": groups}
    model, params = random_model(0.4, **options)
    found = jax.tree.map(np.float64, nfllm.capture(model, params, TOKENS))
    own = jax.tree.map(np.float64, params["blocks"]["mlp"])
    for layer in range(2):
        x, learned = found.mlp_pre[layer], {n: p[layer] for n, p in own["activation"].items()}
        by_group = x.reshape(*x.shape[:-1], groups, -1)
        deviation = np.sqrt(by_group.var(-1, keepdims=True) + 1e-5)
        y = x / (1 + np.exp(-learned["gate"] * x))
        y = (y.reshape(by_group.shape) / deviation).reshape(x.shape)
        y = learned["scale"] * y + learned["bias"]
        if mlp == "gated":
            y = y * (found.mlp_in[layer] @ own["in_kernel"][layer])
        np.testing.assert_allclose(found.mlp_post[layer], y, rtol=1e-4, atol=1e-5)
    assert model.config.statistics == "normalised"
    with pytest.raises(ConfigError, match=r"groups=3 does not divide the 64 .*_s0 \(activation\)"):
        random_model(0.4, **options | {"normalization_groups": 3})


def test_scales_of_1_are_the_plain_block_and_others_by_hand() -> None:
    plain, params = random_model(0.3, num_layers=1)
    scaled, shapes = random_model(0.3, num_layers=1, **SCALED)
    gains = {"residual_gain": jnp.ones(1), "mlp_alpha": jnp.ones(1)}
    blocks = params["blocks"]
    np.testing.assert_array_equal(
        logits(scaled, {**params, "blocks": {**blocks, **gains}}), logits(plain, params)
    )
    assert size(shapes) == size(params) + 2

    gains = {"residual_gain": jnp.array([0.5]), "mlp_alpha": jnp.array([2.0])}
    found = nfllm.capture(scaled, {**params, "blocks": {**blocks, **gains}}, TOKENS)
    attended = found.residual[0] + found.attention_out[0]
    expected = 0.5 * attended + found.mlp_out[0]
    np.testing.assert_allclose(found.residual[1], expected, rtol=1e-6, atol=1e-6)
    once = nfllm.capture(plain, params, TOKENS)
    np.testing.assert_allclose(found.mlp_out[0], once.mlp_out[0] / 2, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_alpha_is_minus_the_branch_over_its_square() -> None:
    config = small_config(model={"num_layers": 1, **SCALED})
    model = make_parts(config).model
    params = model.init(jax.random.key(0), TOKENS)["params"]
    params["blocks"]["mlp_alpha"] = jnp.array([2.0])

    def total(params: Any) -> jax.Array:
        return nfllm.capture(model, params, TOKENS).residual[-1].sum()

    grads = jax.grad(total)(params)["blocks"]
    found = nfllm.capture(model, params, TOKENS)
    attended = found.residual[0] + found.attention_out[0]
    np.testing.assert_allclose(grads["mlp_alpha"][0], -found.mlp_out.sum() / 2, rtol=1e-4)
    np.testing.assert_allclose(grads["residual_gain"][0], attended.sum(), rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_pruned_layer_only_attends(architecture: str) -> None:
    options = {"num_layers": 3, "architecture": architecture, "rotary_fraction": None}
    options |= {"rotary_fraction": 0.5} if architecture == "gpt_neox" else {}
    full, params = random_model(0.3, **options)
    pruned, shapes = random_model(0.3, **options, mlp_pruned_layers=2)
    first, deepest = (
        jax.tree.map(lambda x, part=part: x[part], params["blocks"])
        for part in (slice(1), slice(1, None))
    )
    deepest = {name: deepest[name] for name in ("attention",)}
    found = {**params, "blocks": first, "attention_blocks": deepest}
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    silent = jax.tree.map(jnp.asarray, params)
    kernel = silent["blocks"]["mlp"]["out_kernel"].at[1:].set(0)
    silent["blocks"] = {
        **silent["blocks"],
        "mlp": {**silent["blocks"]["mlp"], "out_kernel": kernel},
    }
    np.testing.assert_allclose(logits(pruned, found), logits(full, silent), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "of_layers"),
    [
        (FUSED, 2 * (4 * 16**2 + 16**2)),
        ({**LINEAR, "mlp": "none"}, 2 * 4 * 16**2),
        (PRUNED, 3 * 4 * 16**2 + 8 * 16**2),
        ({**FUSED, **PRUNED, **SCALED}, 3 * 4 * 16**2 + 16**2 + 2),
        ({"softmax_temperature": "head"}, 2 * (12 * 16**2 + 2)),
        ({"softmax_temperature": "head_position"}, 2 * (12 * 16**2 + 2 * 12)),
    ],
)
def test_there_are_no_more_parameters_than_are_used(options: Any, of_layers: int) -> None:
    model = make_parts(small_config(model={**options, "final_normalization": "none"})).model
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    assert size(shapes) == of_layers + (VOCAB_SIZE + 12) * 16
    grads = jax.grad(lambda params: model.apply({"params": params}, TOKENS).std())(
        random_model(0.3, **options, final_normalization="none")[1]
    )
    unused = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(np.asarray(grad))
    ]
    assert not unused


def test_everything_is_recorded_by_layer_and_can_be_patched() -> None:
    model, params = random_model(0.3, **EVERYTHING)
    found = nfllm.capture(model, params, TOKENS)
    assert found.attention_probs.shape == (3, 2, 2, 9, 9)
    assert found.residual.shape == (4, 2, 9, 16)
    assert (found.mlp_out.shape, found.mlp_in.shape) == ((1, 2, 9, 16), (1, 2, 9, 16))
    assert found.mlp_pre.shape == found.mlp_post.shape == (0, 2, 9, 64)
    np.testing.assert_array_equal(found.logits, logits(model, params))

    last = (jnp.arange(3) == 2)[:, None, None, None]
    silent = nfllm.capture(model, params, TOKENS, patches=[Patch("attention_out", 0.0, last)])
    np.testing.assert_allclose(silent.residual[3], found.residual[2], atol=1e-6)
    without = nfllm.capture(model, params, TOKENS, patches=[Patch("mlp_out", 0.0)])
    gain = params["blocks"]["residual_gain"][0]
    expected = gain * (found.residual[0] + found.attention_out[0])
    np.testing.assert_allclose(without.residual[1], expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"no layer has a site 'mlp_pre': model.mlp is 'f"):
        nfllm.capture(model, params, TOKENS, patches=[Patch("mlp_pre", 0.0)])


def test_the_cache_gives_the_logits_of_the_whole_pass() -> None:
    model, params = random_model(0.3, **EVERYTHING)
    whole = logits(model, params)
    cache = empty_cache(model.config, len(TOKENS))
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        variables = {"params": params, CACHE: cache}
        found, new = model.apply(variables, TOKENS[:, start:stop], mutable=[CACHE])
        np.testing.assert_allclose(found, whole[:, start:stop], atol=1e-5)
        cache = move(new[CACHE], jnp.full(2, stop))


def test_it_trains_and_its_gradients_reach_every_layer() -> None:
    config = small_config(
        model=EVERYTHING, telemetry={"entropy_every_step": True, "gradient_norms": True}
    )
    parts = make_parts(config)
    state = parts.init(jax.random.key(0))
    step = jax.jit(parts.train_step)
    batch = jax.tree.map(lambda x: x[None], random_batch(0))
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss_nats))
    assert losses[-1] < losses[0] - 0.05
    assert metrics.grad_norm_L.shape == (3,)
    assert np.all(np.asarray(metrics.grad_norm_L) > 0)
    assert metrics.entropy_LH.shape == metrics.logit_max_LH.shape == (3, 2)


def test_norms_by_layer_and_the_largest_logit_are_those_of_the_whole() -> None:
    both = {"entropy_every_step": True, "gradient_norms": True}
    config = small_config(telemetry=both, model={"attention_implementation": "explicit"})
    parts = make_parts(config)
    state = parts.init(jax.random.key(0))
    batch = random_batch(0)
    _, metrics = jax.jit(parts.train_step)(state, jax.tree.map(lambda x: x[None], batch))

    captured = nfllm.capture(parts.model, state.params, batch.tokens)
    largest = np.asarray(captured.attention_logits).max((1, 3, 4))
    np.testing.assert_allclose(metrics.logit_max_LH, largest, rtol=1e-5)

    def loss(params: Any) -> jax.Array:
        sums = parts.eval_step(params, batch)
        return sums.loss_nats / sums.num_targets

    blocks = jax.tree.leaves(jax.grad(loss)(state.params)["blocks"])
    squares = sum(np.square(np.asarray(g, np.float64)).reshape(2, -1).sum(1) for g in blocks)
    np.testing.assert_allclose(metrics.grad_norm_L, np.sqrt(squares), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp": "fused"}, "model.activation='relu' has no effect with model.mlp='fused'; set "),
        ({**FUSED, "mlp_dim": 8}, "model.mlp_dim=8 has no effect with model.mlp='fused'"),
        ({**FUSED, "mlp_bias": True}, "model.mlp_bias=True has no effect with model.mlp='fused'"),
        ({"mlp_pruned_layers": 7}, "model.mlp_pruned_layers=7 must be below model.num_layers=6"),
        ({"mlp_pruned_layers": -1}, "model.mlp_pruned_layers=-1 must be at least 0"),
        ({**LINEAR, "mlp": "none", **SCALED}, "mlp_scaling='learned' has no effect with model"),
        ({"softmax_temperature_init": 0.1}, "no effect with model.softmax_temperature='none'"),
        (
            {"softmax_temperature": "head", "softmax_temperature_init": 0.0},
            "model.softmax_temperature_init=0.0 must be greater than 0",
        ),
    ],
)
def test_what_cannot_be_is_named(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ModelConfig(**options)
    assert message in str(raised.value)
