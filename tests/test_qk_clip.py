"""QK-clip: by hand, within a step, and through checkpoints of pruned models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_model
from training_parts import make_parts, random_batch, small_config

import nfllm
from nfllm.config import ConfigError
from nfllm.training.qk_clip import clip_qk

TOKENS = np.random.default_rng(0).integers(0, 50, (2, 9)).astype(np.int32)


def test_by_hand() -> None:
    model, params = random_model(0.3, attention_bias="qk")
    largest = jnp.array([[250.0, 100.0], [400.0, 3.0]])
    found = clip_qk(params, largest, 100.0, model.config)
    before, after = (tree["blocks"]["attention"] for tree in (params, found))
    for layer, head, factor in ((0, 0, 0.6324555320), (0, 1, 1), (1, 0, 0.5), (1, 1, 1)):
        for part, by in ((0, factor), (1, factor), (2, 1)):
            np.testing.assert_allclose(
                after["qkv_kernel"][layer, :, part, head],
                by * before["qkv_kernel"][layer, :, part, head],
                rtol=1e-6 if by != 1 else 0,
            )
        np.testing.assert_allclose(
            after["qk_bias"][layer, :, head], factor * before["qk_bias"][layer, :, head], rtol=1e-6
        )
    np.testing.assert_array_equal(after["out_kernel"], before["out_kernel"])
    assert found["token_embedding"] is params["token_embedding"]


@pytest.mark.parametrize("bias", ["none", "all"])
def test_logits_end_at_the_limit(bias: str) -> None:
    model, params = random_model(
        0.5, attention_bias=bias, num_layers=3, mlp_pruned_layers=1, normalization="layernorm"
    )

    def largest(params: Any) -> np.ndarray:
        logits = np.asarray(nfllm.capture(model, params, TOKENS).attention_logits)
        return logits.max((1, 3, 4))

    before = largest(params)
    limit = float(np.sort(before[0])[0] + before[0].max()) / 2  # one head of layer 0 exceeds it
    after = largest(clip_qk(params, jnp.asarray(before), limit, model.config))
    np.testing.assert_allclose(after[0], np.minimum(before[0], limit), rtol=1e-5)


def test_a_step_clips_what_it_saw() -> None:
    config = small_config(
        model={"init_std": 0.5, "attention_implementation": "explicit"},
        optimizer={"qk_clip": 1.0, "learning_rate": 1e-9, "final_learning_rate": 0.0},
    )
    parts = make_parts(config)
    state = parts.init(jax.random.key(0))
    batch = random_batch(0)
    new, metrics = jax.jit(parts.train_step)(state, jax.tree.map(lambda x: x[None], batch))
    assert metrics.entropy_LH is None
    logits = np.asarray(nfllm.capture(parts.model, state.params, batch.tokens).attention_logits)
    np.testing.assert_allclose(metrics.logit_max_LH, logits.max((1, 3, 4)), rtol=1e-5)
    assert np.all(np.asarray(metrics.logit_max_LH) > 1)
    expected = clip_qk(state.params, metrics.logit_max_LH, 1.0, config.model)
    kernel = new.params["blocks"]["attention"]["qkv_kernel"]
    np.testing.assert_allclose(
        kernel, expected["blocks"]["attention"]["qkv_kernel"], rtol=1e-5, atol=1e-7
    )


def test_nan_clips_nothing() -> None:
    model, params = random_model(0.3)
    found = clip_qk(params, jnp.full((2, 2), jnp.nan), 1.0, model.config)
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"qk_clip": 0.0}}, "optimizer.qk_clip=0.0 must be greater than 0"),
        (
            {"optimizer": {"qk_clip": 100.0}, "model": {"attention_implementation": "xla"}},
            "model.attention_implementation='xla' does not give",
        ),
        (
            {"optimizer": {"qk_clip": 100.0}, "model": {"qk_normalization": "rmsnorm"}},
            "has no effect with model.qk_normalization='rmsnorm'",
        ),
        (
            {"optimizer": {"qk_clip": 100.0}, "model": {"weight_reparametrization": "sigma"}},
            "has no effect with model.weight_reparametrization='sigma'",
        ),
    ],
)
def test_what_cannot_be_is_named(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        small_config(**changes)
    assert message in str(raised.value)
