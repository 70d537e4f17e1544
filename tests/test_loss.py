import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfllm.config import IGNORED_LABEL
from nfllm.model.head import unembed
from nfllm.training.loss import count_targets, next_token_loss, shift_labels
from nfllm.training.loss_tiles import next_token_loss_from_features


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


def test_the_gradient_is_softmax_minus_one_hot():
    generator = np.random.default_rng(0)
    logits_BTV = generator.normal(0, 3, (2, 5, 9)).astype(np.float32)
    labels_BT = generator.integers(0, 9, (2, 5))
    labels_BT[1, 2] = IGNORED_LABEL
    exact = logits_BTV.astype(np.float64)
    probs_BTV = np.exp(exact - exact.max(-1, keepdims=True))
    probs_BTV /= probs_BTV.sum(-1, keepdims=True)
    expected = np.zeros_like(probs_BTV)
    for row, position in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]:
        expected[row, position] = probs_BTV[row, position]
        expected[row, position, labels_BT[row, position + 1]] -= 1
    found = jax.grad(lambda x: 2 * next_token_loss(x, jnp.asarray(labels_BT)))(logits_BTV)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-5, atol=1e-6)


def _loss_of_features(x_BTD, table_VD, labels_BT, tile_rows):
    def head(x_ND):
        return unembed(x_ND, table_VD.astype(x_ND.dtype))

    return next_token_loss_from_features(head, x_BTD, labels_BT, tile_rows)


# 3 sequences of 8 tokens: one position a tile, tiles of 3 with one position of filler, of 4, whole.
@pytest.mark.parametrize("tile_rows", [1, 9, 12, 24, 1000])
def test_tiles_do_not_change_loss_or_gradients(tile_rows):
    generator = np.random.default_rng(0)
    x_BTD = generator.normal(size=(3, 8, 4)).astype(np.float32)
    table_VD = generator.normal(size=(11, 4)).astype(np.float32)
    labels_BT = jnp.asarray(generator.integers(0, 11, (3, 8))).at[1, 3].set(IGNORED_LABEL)

    def of_logits(x_BTD, table_VD):
        return 3 * next_token_loss(unembed(x_BTD, table_VD), labels_BT)

    def of_tiles(x_BTD, table_VD):
        return 3 * _loss_of_features(x_BTD, table_VD, labels_BT, tile_rows)

    plain, tiled = (jax.value_and_grad(f, (0, 1))(x_BTD, table_VD) for f in (of_logits, of_tiles))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5), tiled, plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tile_rows", "limit"), [(None, 1.1), (128, 0.4)])
def test_memory_is_that_of_one_copy_of_the_logits_or_of_a_tile(dtype, tile_rows, limit):
    """XLA's temporaries of loss and gradients; a tile is an eighth of the rows, the table 1/32."""
    shape, vocab_size, width = (4, 256), 4096, 32
    program = jax.jit(jax.value_and_grad(_loss_of_features, (0, 1)), static_argnums=3)
    compiled = program.lower(
        jax.ShapeDtypeStruct((*shape, width), dtype),
        jax.ShapeDtypeStruct((vocab_size, width), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        tile_rows,
    ).compile()
    logits_bytes = 4 * shape[0] * shape[1] * vocab_size
    assert compiled.memory_analysis().temp_size_in_bytes < limit * logits_bytes


def test_float16_gradients_of_tiles_are_rounded_at_their_scale():
    """The probability of the rare ids is 1e-8, which float16 rounds to 0 but not 2^15 times it."""
    scale = 2.0**15
    x_BTD = jnp.ones((2, 8, 4), jnp.float16)
    table_VD = jnp.zeros((11, 4), jnp.float16).at[5:].set(-4.6)
    labels_BT = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 8)))

    def gradient(tile_rows):
        def loss(table_VD):
            def head(x_ND):
                return unembed(x_ND, table_VD)

            options = {"tile_rows": tile_rows, "gradient_scale": scale}
            return scale * next_token_loss_from_features(head, x_BTD, labels_BT, **options)

        return jax.grad(loss)(table_VD).astype(jnp.float32) / scale

    whole, tiles = gradient(1000), gradient(4)
    assert float(jnp.abs(whole[5:]).min()) > 0
    np.testing.assert_allclose(tiles, whole, rtol=0.01)


def test_the_scale_of_tiles_does_not_change_gradients():
    """Whatever the loss is multiplied with in the end."""
    generator = np.random.default_rng(0)
    x_BTD = jnp.asarray(generator.normal(size=(3, 8, 4)), jnp.float32)
    table_VD = jnp.asarray(generator.normal(size=(11, 4)), jnp.float32)
    labels_BT = jnp.asarray(generator.integers(0, 11, (3, 8)))

    def loss(table_VD, scale):
        def head(x_ND):
            return unembed(x_ND, table_VD)

        return 3 * next_token_loss_from_features(head, x_BTD, labels_BT, 9, scale)

    plain, scaled = (jax.grad(loss)(table_VD, scale) for scale in (1.0, 4096.0))
    np.testing.assert_array_equal(plain, scaled)
