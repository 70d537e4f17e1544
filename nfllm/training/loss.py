"""Next-token cross-entropy, as a sum and a count, so that batches can be combined exactly."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.config import IGNORED_LABEL
from nfllm.model.tuning import tuning


def shift_labels(labels_BT: jax.Array) -> jax.Array:
    """Targets of each position: the next label, and `IGNORED_LABEL` at the last position."""
    return jnp.pad(labels_BT[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED_LABEL)


def count_targets(labels_BT: jax.Array) -> jax.Array:
    """Number of positions that contribute to the loss; the first label is never a target."""
    return jnp.sum(labels_BT[:, 1:] != IGNORED_LABEL)


def next_token_loss(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Sum over targets of -log softmax(logits)[target], in nats.

    Position t is scored against label t + 1; labels equal to `IGNORED_LABEL` are left out. For the
    mean, divide by `count_targets(labels_BT)`. Only reverse-mode derivatives exist.

    Args:
      logits_BTV: float32.
      labels_BT: int32 token ids, or `IGNORED_LABEL`.

    Returns:
      A float32 scalar.
    """
    return _cross_entropy(_rows(logits_BTV), shift_labels(labels_BT).reshape(-1))


def next_token_loss_from_features(
    head: Callable[[jax.Array], jax.Array],
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    tile_rows: int | None = None,
) -> jax.Array:
    """`next_token_loss(head(x_BTD), labels_BT)`, keeping one copy of the logits.

    If there are few logits (`Tuning.plain_loss_bytes`), JAX's own derivative is used, which is
    faster for them.

    With `tile_rows`, the logits of only about that many positions exist at once: the gradients of a
    tile are computed together with its loss. Tiles are cut along T, so that a batch that is sharded
    over devices stays sharded: a tile has at least one position of every sequence.

    Args:
      head: hidden states [..., D] to logits [..., V], float32.
      x_BTD: hidden states.
      labels_BT: int32 token ids, or `IGNORED_LABEL`.
      tile_rows: number of positions, over all sequences of the batch, in a tile; by default from
        `Tuning`.

    Returns:
      A float32 scalar.
    """
    if tile_rows is None:
        tile_rows = _fastest_tile_rows(head, x_BTD)
    targets_BT = shift_labels(labels_BT)
    sequences, length = targets_BT.shape
    tile_length = length if tile_rows is None else max(1, tile_rows // sequences)
    num_tiles = -(-length // tile_length)
    if num_tiles == 1:
        return _loss_of_head(head, x_BTD, targets_BT)
    tile_length = -(-length // num_tiles)
    filler = (0, num_tiles * tile_length - length)
    x_BTD = jnp.pad(x_BTD, ((0, 0), filler, (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), filler), constant_values=IGNORED_LABEL)

    def tiles(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(sequences, num_tiles, tile_length, *x.shape[2:]), 1, 0)

    x_IBtD = tiles(x_BTD)
    head_of_rows, parameters = jax.closure_convert(head, _rows(x_IBtD[0]))

    def pure_head(x: jax.Array, parameters: list[jax.Array]) -> jax.Array:
        return head_of_rows(_rows(x), *parameters).reshape(*x.shape[:-1], -1)

    return _loss_of_tiles(pure_head, x_IBtD, tiles(targets_BT), parameters)


def _fastest_tile_rows(head: Callable[[jax.Array], jax.Array], x_BTD: jax.Array) -> int | None:
    """Positions in a tile by `Tuning`, None for all."""
    sixteen_bit = x_BTD.dtype.itemsize == 2
    most = tuning().tile_logits_16_bit if sixteen_bit else tuning().tile_logits
    if most is None:
        return None
    logits = jax.eval_shape(head, x_BTD)
    few = 4 * logits.size <= tuning().plain_loss_bytes
    return None if few else max(1, most // logits.shape[-1])


def _loss_of_head(
    head: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    if 4 * jax.eval_shape(head, x_BTD).size <= tuning().plain_loss_bytes:
        return _summed_nats(head(x_BTD), targets_BT)[0]
    # With logits [N, V], XLA reuses their memory for their gradient; with [B, T, V] it would copy.
    return _cross_entropy(head(_rows(x_BTD)), targets_BT.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_of_tiles(
    head: Callable[..., jax.Array],
    x_IBtD: jax.Array,
    targets_IBt: jax.Array,
    parameters: list[jax.Array],
) -> jax.Array:
    """Sum over the tiles I of the loss of `head(x_BtD, parameters)`."""

    def add(nats: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return nats + _loss_of_head(lambda x: head(x, parameters), *tile), None

    return jax.lax.scan(add, jnp.zeros(()), (x_IBtD, targets_IBt))[0]


_Gradients = tuple[jax.Array, list[jax.Array]]


def _forward_of_tiles(
    head: Callable[..., jax.Array],
    x_IBtD: jax.Array,
    targets_IBt: jax.Array,
    parameters: list[jax.Array],
) -> tuple[jax.Array, _Gradients]:
    """The loss and its gradients, which the backward pass only has to scale by the cotangent."""

    def add(
        sums: tuple[jax.Array, list[jax.Array]], tile: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, list[jax.Array]], jax.Array]:
        x_BtD, targets_Bt = tile

        def loss(x_BtD: jax.Array, parameters: list[jax.Array]) -> jax.Array:
            return _loss_of_head(lambda x: head(x, parameters), x_BtD, targets_Bt)

        nats, (x_bar_BtD, new) = jax.value_and_grad(loss, (0, 1))(x_BtD, parameters)
        return jax.tree.map(jnp.add, sums, (nats, new)), x_bar_BtD

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters)
    (nats, parameters_bar), x_bar_IBtD = jax.lax.scan(add, zeros, (x_IBtD, targets_IBt))
    return nats, (x_bar_IBtD, parameters_bar)


def _backward_of_tiles(
    _head: Callable[..., jax.Array], gradients: _Gradients, nats_bar: jax.Array
) -> tuple[jax.Array, None, list[jax.Array]]:
    x_bar_IBtD, parameters_bar = jax.tree.map(lambda g: (g * nats_bar).astype(g.dtype), gradients)
    return x_bar_IBtD, None, parameters_bar


_loss_of_tiles.defvjp(_forward_of_tiles, _backward_of_tiles)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _summed_nats(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss of logits [..., V] on targets [...], and the log of each softmax's denominator."""
    counted = targets != IGNORED_LABEL
    index = jnp.where(counted, targets, 0)[..., None]
    target_logit = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(counted, normalizer - target_logit, 0.0)), normalizer


@jax.custom_vjp
def _cross_entropy(logits_NV: jax.Array, targets_N: jax.Array) -> jax.Array:
    """Sum of -log softmax(logits)[target] where there is a target.

    JAX's own derivative keeps exp(logits - max) beside the logits, and scatters into a tensor of
    their size. This one keeps only the logits.
    """
    return _summed_nats(logits_NV, targets_N)[0]


_Residuals = tuple[jax.Array, jax.Array, jax.Array]


def _forward(logits_NV: jax.Array, targets_N: jax.Array) -> tuple[jax.Array, _Residuals]:
    nats, normalizer_N = _summed_nats(logits_NV, targets_N)
    return nats, (logits_NV, normalizer_N, targets_N)


def _backward(residuals: _Residuals, nats_bar: jax.Array) -> tuple[jax.Array, None]:
    logits_NV, normalizer_N, targets_N = residuals
    # Not exp(logits - max) / sum: XLA would keep the exponential of the forward pass for it.
    probs_NV = jnp.exp(logits_NV - normalizer_N[:, None])
    is_target_NV = targets_N[:, None] == jnp.arange(logits_NV.shape[-1])[None]
    factor_N = jnp.where(targets_N != IGNORED_LABEL, nats_bar, 0.0)
    return (probs_NV - is_target_NV) * factor_N[:, None], None


_cross_entropy.defvjp(_forward, _backward)
