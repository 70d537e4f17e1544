import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from training_parts import make_parts, random_batch, small_config

import nfllm
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.model.intermediates import record_update
from nfllm.training.guard import Guard, leave_out_step, open_guard
from nfllm.training.loss_scale import LossScale
from nfllm.training.removal import make_gating


def _split(batch, micro_batches):
    return Batch(*(x.reshape(micro_batches, -1, x.shape[-1]) for x in batch))


def _masked_batch(seed):
    """A batch whose rows have very different numbers of targets."""
    tokens, labels = random_batch(seed)
    labels = labels.copy()
    for row in range(len(labels)):
        labels[row, : row + 2] = IGNORED_LABEL
    return tokens, labels


def _overflowing(batch):
    """The same sequences with a label that is no token, whose loss is NaN."""
    labels = batch.labels.copy()
    labels[2, 5] = 10_000
    return Batch(batch.tokens, labels)


def _after_one_step(config, batch, micro_batches):
    parts = make_parts(config)
    state = jax.jit(parts.init)(jax.random.key(0))
    return jax.jit(parts.train_step)(state, _split(batch, micro_batches))


def test_token_weighting_does_not_depend_on_the_number_of_micro_batches():
    config = small_config()
    whole_state, whole = _after_one_step(config, _masked_batch(0), 1)
    state, metrics = _after_one_step(config, _masked_batch(0), 4)
    np.testing.assert_allclose(metrics.loss_nats, whole.loss_nats, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, whole.grad_norm, rtol=1e-5)
    assert int(metrics.num_targets) == int(whole.num_targets) == sum(range(3, 11))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, whole_state.params
    )


@pytest.mark.slow
def test_micro_batch_weighting_is_the_mean_of_the_micro_batches_means():
    config = small_config(optimizer={"accumulation_weighting": "micro_batch"})
    _, metrics = _after_one_step(config, _masked_batch(0), 4)
    np.testing.assert_allclose(metrics.loss_nats, np.mean(metrics.micro_losses), rtol=1e-6)
    _, by_token = _after_one_step(small_config(), _masked_batch(0), 4)
    np.testing.assert_allclose(metrics.micro_losses, by_token.micro_losses, rtol=1e-6)
    assert abs(float(metrics.loss_nats - by_token.loss_nats)) > 1e-4


def test_order_of_the_sequences_does_not_matter():
    tokens, labels = _masked_batch(0)
    order = np.random.RandomState(1).permutation(len(tokens))
    _, metrics = _after_one_step(small_config(), (tokens, labels), 1)
    _, permuted = _after_one_step(small_config(), (tokens[order], labels[order]), 1)
    np.testing.assert_allclose(permuted.loss_nats, metrics.loss_nats, rtol=1e-6)
    np.testing.assert_allclose(permuted.grad_norm, metrics.grad_norm, rtol=1e-5)


def test_learning_rate_follows_the_updates_that_were_applied():
    parts = make_parts(small_config())
    state = jax.jit(parts.init)(jax.random.key(0))
    step = jax.jit(parts.train_step)
    state, first = step(state, _split(random_batch(0), 1))
    good = state.params
    poisoned = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), good)
    state, bad = step(state.replace(params=poisoned), _split(random_batch(1), 1))
    state = leave_out_step(state.replace(params=good), make_gating(small_config()))
    state, third = step(state, _split(random_batch(2), 1))
    assert [bool(m.finite) for m in (first, bad, third)] == [True, False, True]
    assert (int(state.step), int(state.skipped)) == (3, 1)
    # Warmup of two updates to 1e-3: the skipped step does not use one up.
    np.testing.assert_allclose([first.learning_rate, third.learning_rate], [5e-4, 1e-3], rtol=1e-6)


@pytest.fixture(scope="module")
def trains():
    """A compiled step, a state, and a batch whose loss is NaN."""
    parts = make_parts(small_config())
    bad = _split(_overflowing(random_batch(3)), 1)
    return jax.jit(parts.train_step), jax.jit(parts.init)(jax.random.key(0)), bad


def _same(one, other):
    return jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.array_equal(a, b, equal_nan=True)), one, other)
    )


def test_a_step_that_is_not_finite_trips_the_guard_and_nothing_moves_after_it(trains):
    step, start, bad = trains
    state, metrics = step(start, bad)
    assert (bool(metrics.finite), bool(metrics.tripped)) == (False, True)
    assert _same(state.without_guard(), start.without_guard())
    later, metrics = step(state, _split(random_batch(0), 1))
    assert (bool(metrics.finite), bool(metrics.tripped)) == (True, True)
    assert _same(later, state)


def test_a_step_that_is_left_out_counts_as_consumed(trains):
    step, start, bad = trains
    state = leave_out_step(step(start, bad)[0], make_gating(small_config()))
    assert (int(state.step), int(state.skipped)) == (1, 1)
    after, metrics = step(state, _split(random_batch(0), 1))
    expected, _ = step(start, _split(random_batch(0), 1))
    assert not bool(metrics.tripped)
    assert _same(after.params, expected.params)


def test_an_open_guard_applies_what_is_not_finite_and_a_finite_step_shuts_it(trains):
    step, start, bad = trains
    state = open_guard(step(start, bad)[0])
    state, metrics = step(state, bad)
    assert (bool(metrics.finite), bool(metrics.tripped)) == (False, False)
    assert (int(state.step), int(state.skipped)) == (1, 0)
    assert not _same(state.params, start.params)
    state, metrics = step(state.replace(params=start.params), _split(random_batch(0), 1))
    assert bool(metrics.finite)
    assert int(state.guard) == Guard.WATCHING
    assert bool(step(state, bad)[1].tripped)


def test_float16_skips_overflowing_gradients_and_adapts_its_scale():
    parts = make_parts(small_config(training={"dtype": "float16"}))
    step = jax.jit(parts.train_step)
    start = jax.jit(parts.init)(jax.random.key(0))

    def with_scale(factor, finite_steps):
        return start.replace(loss_scale=LossScale(jnp.float32(factor), jnp.int32(finite_steps)))

    overflowed, metrics = step(with_scale(2.0**40, 7), _split(random_batch(0), 1))
    assert bool(metrics.finite)  # the loss is sound, only the scale was too big
    assert int(overflowed.skipped) == 1
    assert float(overflowed.loss_scale.factor) == 2.0**39
    assert int(overflowed.loss_scale.finite_steps) == 0

    grown, exact_scale = step(with_scale(2.0**10, 1999), _split(random_batch(0), 1))
    assert int(grown.skipped) == 0
    assert float(grown.loss_scale.factor) == 2.0**11

    # At scale 1 the gradients themselves are at fault.
    tripped, metrics = step(with_scale(1.0, 7), _split(_overflowing(random_batch(0)), 1))
    assert bool(metrics.tripped)
    assert int(tripped.skipped) == 0
    left_out = leave_out_step(tripped, make_gating(small_config()))
    assert (int(left_out.skipped), float(left_out.loss_scale.factor)) == (1, 0.5)

    # The scale cancels: gradients are those of float32 to float16's rounding.
    _, exact = _after_one_step(small_config(), random_batch(0), 1)
    np.testing.assert_allclose(exact_scale.grad_norm, exact.grad_norm, rtol=5e-3)


def test_dropout_masks_follow_the_sequence_not_the_micro_batch():
    config = small_config(model={"embedding_dropout": 0.3, "residual_dropout": 0.2})
    _, whole = _after_one_step(config, random_batch(0), 1)
    _, split = _after_one_step(config, random_batch(0), 4)
    _, without = _after_one_step(small_config(), random_batch(0), 1)
    np.testing.assert_allclose(split.loss_nats, whole.loss_nats, rtol=1e-6)
    np.testing.assert_allclose(split.grad_norm, whole.grad_norm, rtol=1e-5)
    assert abs(float(whole.grad_norm / without.grad_norm) - 1) > 1e-2


class Running(nn.Module):
    """x / s, where s is measured, and its gradient is not stopped."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        size = self.param("running_size", nn.initializers.ones, ())
        record_update(self, "running_size", lambda: 0.9 * size + 0.1)
        return (x / size).astype(self.dtype)


def test_what_is_measured_has_no_gradient_even_if_its_module_lets_it_pass(registries):
    nfllm.register_normalization(
        "running", Running, parameters={"running_size": "statistic"}, statistics="frozen"
    )
    model = {"normalization": "running", "num_layers": 1}
    parts = make_parts(small_config(model=model, telemetry={"gradient_norms": True}))
    state = jax.jit(parts.init)(jax.random.key(0))
    new, metrics = jax.jit(parts.train_step)(state, _split(random_batch(0), 1))
    size = new.params["blocks"]["attention_norm"]["running_size"]
    assert np.asarray(size).tolist() == [1.0]  # 0.9 + 0.1, and nothing else
    moments = [
        float(jnp.abs(x).sum())
        for path, x in jax.tree_util.tree_leaves_with_path(new.opt_state)
        if "running_size" in jax.tree_util.keystr(path)
    ]
    assert moments
    assert sum(moments) == 0
    assert float(metrics.grad_norm) > 0
