"""The entropy regularizer within a training step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parallel import _train
from training_parts import make_parts, random_batch, small_config

import nfllm
from nfllm.config import Config, ConfigError
from nfllm.training.entropy_penalty import Reduction, entropy_penalty

pytestmark = pytest.mark.slow

LENGTH = 12
# Of all heads at the start, uniform: entropy 1.667 of a mean of 0.5 ln 12 = 1.242.
STRONG = {"entropy_weight": 0.5, "entropy_margin": 0.05}


def config_with(objective: Any, **changes: Any) -> Config:
    return small_config(objective={**STRONG, **objective}, **changes)


def one_step(config: Config, micro_batches: int = 1) -> tuple[Any, Any, Any]:
    parts = make_parts(config)
    state = parts.init(jax.random.key(0))
    batch = jax.tree.map(
        lambda x: x.reshape(micro_batches, 8 // micro_batches, LENGTH), random_batch(0)
    )
    return parts, state, jax.jit(parts.train_step)(state, batch)


@pytest.mark.parametrize("reduction", ["mean", "row_sum"])
@pytest.mark.parametrize("implementation", ["explicit", "blocks"])
def test_the_step_descends_cross_entropy_and_penalty(
    reduction: Reduction, implementation: str
) -> None:
    config = config_with(
        {"entropy_reduction": reduction, "entropy_threshold": 0.4},
        model={"attention_implementation": implementation},
        optimizer={"clip_norm": 0.0},
    )
    parts, state, (_, metrics) = one_step(config)
    batch = random_batch(0)

    def reference(params: Any) -> tuple[jax.Array, jax.Array]:
        captured = nfllm.capture(parts.model, params, batch.tokens)
        p = captured.attention_probs
        safe = jnp.where(p > 0, p, 1.0)
        entropy_LBHT = -jnp.sum(p * jnp.log(safe), axis=-1)
        threshold = params["objective"]["entropy_threshold"]
        penalty = entropy_penalty(entropy_LBHT, threshold, margin=0.05, reduction=reduction).mean()
        logits = jax.nn.log_softmax(captured.logits[:, :-1])
        nats = -jnp.take_along_axis(logits, batch.tokens[:, 1:, None], axis=-1).mean()
        return nats + 0.5 * penalty, (nats, penalty)

    (_, (nats, penalty)), grads = jax.value_and_grad(reference, has_aux=True)(state.params)
    assert float(metrics.loss_nats) == pytest.approx(float(nats), rel=1e-6)
    assert float(metrics.auxiliary["entropy_penalty"]) == pytest.approx(float(penalty), rel=1e-5)
    assert float(penalty) > 1e-3
    norm = np.sqrt(sum(np.square(np.asarray(g)).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics.grad_norm) == pytest.approx(norm, rel=2e-5)
    plain = jax.grad(lambda params: reference(params)[1][0])(state.params)
    without = np.sqrt(sum(np.square(np.asarray(g)).sum() for g in jax.tree.leaves(plain)))
    assert abs(norm - without) > 1e-3 * norm


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_micro_batches_change_nothing(micro_batches: int) -> None:
    config = config_with({})
    _, _, (one, expected) = one_step(config)
    changed = config_with({}, training={"gradient_accumulation": micro_batches})
    _, _, (many, found) = one_step(changed, micro_batches)
    for name in ("loss_nats", "grad_norm"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-6)
    np.testing.assert_allclose(
        found.auxiliary["entropy_penalty"], expected.auxiliary["entropy_penalty"], rtol=2e-6
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), many.params, one.params)


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_devices_change_nothing(strategy: str) -> None:
    _, one, losses_of_one = _train(config_with({}), 1)
    for devices in (2, 4):
        config = config_with({}, parallel={"strategy": strategy})
        _, several, losses = _train(config, devices)
        np.testing.assert_allclose(losses, losses_of_one, rtol=2e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), several.params, one.params
        )


def test_thresholds_are_learned_kept_or_shared() -> None:
    _, before, (after, _) = one_step(config_with({}, optimizer={"warmup_steps": 0}))
    thresholds = after.params["objective"]["entropy_threshold"]
    assert thresholds.shape == (2, 2)
    np.testing.assert_array_equal(before.params["objective"]["entropy_threshold"], 0.5)
    # Adam's first step is one learning rate; there is no decay, and heads are above the threshold.
    np.testing.assert_allclose(thresholds, 0.501, atol=1e-5)

    _, state, _ = one_step(config_with({"entropy_threshold_sharing": "first"}))
    assert state.params["objective"]["entropy_threshold"].shape == (1, 2)
    _, state, (_, metrics) = one_step(config_with({"entropy_threshold_trainable": False}))
    assert "objective" not in state.params
    assert float(metrics.auxiliary["entropy_penalty"]) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_finite_and_near(dtype: str) -> None:
    _, _, (_, expected) = one_step(config_with({}))
    _, _, (_, found) = one_step(config_with({}, training={"dtype": dtype}))
    assert bool(found.finite)
    expected_penalty = float(expected.auxiliary["entropy_penalty"])
    assert float(found.auxiliary["entropy_penalty"]) == pytest.approx(expected_penalty, rel=1e-2)


def test_a_weight_of_0_adds_nothing() -> None:
    plain = make_parts(small_config())
    assert plain.auxiliaries == ()
    state = jax.eval_shape(plain.init, jax.random.key(0))
    assert "objective" not in state.params
    batch = jax.tree.map(lambda x: x[None], random_batch(0))
    assert jax.eval_shape(plain.train_step, state, batch)[1].auxiliary == {}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"entropy_weight": -1.0}, "objective.entropy_weight=-1.0 must be at least 0"),
        ({"entropy_threshold": 1.5, "entropy_weight": 1.0}, "entropy_threshold=1.5 is outside"),
        ({"entropy_margin": 0.1}, "objective.entropy_margin=0.1 has no effect with objective.entr"),
        ({"entropy_weight": 1.0, "entropy_reduction": "max"}, "unknown entropy_reduction 'max'"),
    ],
)
def test_bad_values_are_named(objective: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        small_config(objective=objective)
    assert message in str(raised.value)


def test_attention_that_keeps_no_rows_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'xla' does not keep; use 'auto', 'explicit' or 'bl"):
        config_with({}, model={"attention_implementation": "xla"})


def test_a_threshold_that_no_uniform_head_exceeds_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_parts(config_with({"entropy_threshold": 0.7, "entropy_margin": 0.2}))
    assert "never penalizes a uniform head; with 12 causal queries the threshold" in caplog.text
    caplog.clear()
    make_parts(config_with({"entropy_threshold": 0.4, "entropy_margin": 0.2}))
    assert not caplog.text
