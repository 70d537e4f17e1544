import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import make_parts, random_batch, small_config

from nfllm.config import IGNORED_LABEL
from nfllm.training.state import LossScale


def _split(batch, micro_batches):
    return [x.reshape(micro_batches, -1, x.shape[-1]) for x in batch]


def _masked_batch(seed):
    """A batch whose rows have very different numbers of targets."""
    tokens, labels = random_batch(seed)
    labels = labels.copy()
    for row in range(len(labels)):
        labels[row, : row + 2] = IGNORED_LABEL
    return tokens, labels


def _after_one_step(config, batch, micro_batches):
    parts = make_parts(config)
    state = jax.jit(parts.init)(jax.random.key(0))
    return jax.jit(parts.step)(state, *_split(batch, micro_batches))


def test_token_weighting_does_not_depend_on_the_number_of_micro_batches():
    config = small_config()
    whole_state, whole = _after_one_step(config, _masked_batch(0), 1)
    for micro_batches in (2, 8):
        state, metrics = _after_one_step(config, _masked_batch(0), micro_batches)
        np.testing.assert_allclose(metrics.loss_nats, whole.loss_nats, rtol=1e-6)
        np.testing.assert_allclose(metrics.grad_norm, whole.grad_norm, rtol=1e-5)
        assert int(metrics.num_targets) == int(whole.num_targets) == sum(range(3, 11))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            state.params,
            whole_state.params,
        )


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
    parts = make_parts(small_config(training={"non_finite": "skip"}))
    state = jax.jit(parts.init)(jax.random.key(0))
    step = jax.jit(parts.step)
    state, first = step(state, *_split(random_batch(0), 1))
    good = state.params
    poisoned = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), good)
    state, skipped = step(state.replace(params=poisoned), *_split(random_batch(1), 1))
    state, third = step(state.replace(params=good), *_split(random_batch(2), 1))
    assert [bool(m.finite) for m in (first, skipped, third)] == [True, False, True]
    assert (int(state.step), int(state.skipped)) == (3, 1)
    # Warmup of two updates to 1e-3: the skipped step does not use one up.
    np.testing.assert_allclose([first.learning_rate, third.learning_rate], [5e-4, 1e-3], rtol=1e-6)


@pytest.mark.parametrize("policy", ["stop", "skip", "continue"])
def test_a_step_that_is_not_finite_changes_nothing_unless_asked_to(policy):
    parts = make_parts(small_config(training={"non_finite": policy}))
    state = jax.jit(parts.init)(jax.random.key(0))
    bias = state.params["final_norm"]["bias"].at[3].set(jnp.inf)
    state = state.replace(
        params={**state.params, "final_norm": {**state.params["final_norm"], "bias": bias}}
    )
    after, metrics = jax.jit(parts.step)(state, *_split(random_batch(0), 1))
    assert not bool(metrics.finite)
    same = jax.tree.map(
        lambda a, b: bool(np.array_equal(a, b, equal_nan=True)),
        (after.params, after.opt_state),
        (state.params, state.opt_state),
    )
    assert jax.tree.all(same) == (policy != "continue")
    assert int(after.skipped) == (policy != "continue")
    assert int(after.step) == 1


def test_float16_skips_overflowing_gradients_and_adapts_its_scale():
    parts = make_parts(small_config(training={"dtype": "float16"}))
    step = jax.jit(parts.step)
    start = jax.jit(parts.init)(jax.random.key(0))

    def with_scale(factor, finite_steps):
        return start.replace(loss_scale=LossScale(jnp.float32(factor), jnp.int32(finite_steps)))

    overflowed, metrics = step(with_scale(2.0**40, 7), *_split(random_batch(0), 1))
    assert bool(metrics.finite)  # the loss is sound, only the scale was too big
    assert int(overflowed.skipped) == 1
    assert float(overflowed.loss_scale.factor) == 2.0**39
    assert int(overflowed.loss_scale.finite_steps) == 0

    grown, metrics = step(with_scale(2.0**10, 1999), *_split(random_batch(0), 1))
    assert int(grown.skipped) == 0
    assert float(grown.loss_scale.factor) == 2.0**11

    # The scale cancels: gradients are those of float32 to float16's rounding.
    _, exact = _after_one_step(small_config(), random_batch(0), 1)
    np.testing.assert_allclose(metrics.grad_norm, exact.grad_norm, rtol=5e-3)


def test_dropout_masks_follow_the_sequence_not_the_micro_batch():
    config = small_config(model={"embedding_dropout": 0.3, "residual_dropout": 0.2})
    _, whole = _after_one_step(config, random_batch(0), 1)
    _, split = _after_one_step(config, random_batch(0), 4)
    _, without = _after_one_step(small_config(), random_batch(0), 1)
    np.testing.assert_allclose(split.loss_nats, whole.loss_nats, rtol=1e-6)
    np.testing.assert_allclose(split.grad_norm, whole.grad_norm, rtol=1e-5)
    assert abs(float(whole.grad_norm / without.grad_norm) - 1) > 1e-2
