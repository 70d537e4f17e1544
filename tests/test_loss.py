import jax
import jax.numpy as jnp
import numpy as np

from nfllm.config import IGNORED_LABEL
from nfllm.training.loss import count_targets, next_token_loss, shift_labels


def test_uniform_logits_cost_log_vocabulary_per_target():
    labels_BT = jnp.asarray([[3, 1, 4, 1], [5, 2, IGNORED_LABEL, 6]])
    loss = next_token_loss(jnp.zeros((2, 4, 7)), labels_BT)
    # Six shifted targets, one of them ignored.
    np.testing.assert_allclose(loss, 5 * np.log(7), rtol=1e-6)
    assert int(count_targets(labels_BT)) == 5


def test_position_t_is_scored_against_label_t_plus_1():
    logits_BTV = jnp.asarray([[[0.0, 2.0], [0.0, 5.0], [9.0, 0.0]]])
    # Targets: label 1 at position 0, label 0 at position 1; the last position has none.
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(5.0))
    loss = next_token_loss(logits_BTV, jnp.asarray([[1, 1, 0]]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_shifted_labels_end_in_an_ignored_one():
    shifted = shift_labels(jnp.asarray([[7, 8, 9]]))
    np.testing.assert_array_equal(shifted, [[8, 9, IGNORED_LABEL]])


def test_ignored_targets_have_no_gradient():
    labels_BT = jnp.asarray([[0, IGNORED_LABEL, 1, IGNORED_LABEL]])
    grad_BTV = jax.grad(next_token_loss)(jnp.ones((1, 4, 3)), labels_BT)
    np.testing.assert_array_equal(grad_BTV[0, [0, 2, 3]], 0)
    np.testing.assert_allclose(grad_BTV[0, 1], [1 / 3, -2 / 3, 1 / 3], rtol=1e-6)
