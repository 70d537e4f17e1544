"""The loss of hidden states, computing the logits, a step's largest tensor, one tile at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.config import IGNORED_LABEL
from nfllm.model.tuning import tuning
from nfllm.training.loss import has_few_logits, loss_of_head, rows, shift_labels


def next_token_loss_from_features(
    head: Callable[[jax.Array], jax.Array],
    x_BTD: jax.Array,
    labels_BT: jax.Array,
    tile_rows: int | None = None,
    gradient_scale: jax.Array | float = 1.0,
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
      gradient_scale: what the loss will be multiplied with before it is differentiated. The
        gradients of tiles are rounded to the type of `x_BTD` at this scale, which matters in
        float16; any other multiple of the loss has the right gradients too.

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
        return loss_of_head(head, x_BTD, targets_BT)
    tile_length = -(-length // num_tiles)
    filler = (0, num_tiles * tile_length - length)
    x_BTD = jnp.pad(x_BTD, ((0, 0), filler, (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), filler), constant_values=IGNORED_LABEL)

    def tiles(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(sequences, num_tiles, tile_length, *x.shape[2:]), 1, 0)

    x_IBtD = tiles(x_BTD)
    head_of_rows, parameters = jax.closure_convert(head, rows(x_IBtD[0]))

    def pure_head(x: jax.Array, parameters: list[jax.Array]) -> jax.Array:
        return head_of_rows(rows(x), *parameters).reshape(*x.shape[:-1], -1)

    scale = jnp.float32(gradient_scale)
    return _loss_of_tiles(pure_head, x_IBtD, tiles(targets_BT), parameters, scale)


def _fastest_tile_rows(head: Callable[[jax.Array], jax.Array], x_BTD: jax.Array) -> int | None:
    """Positions in a tile by `Tuning`, None for all."""
    sixteen_bit = x_BTD.dtype.itemsize == 2
    most = tuning().tile_logits_16_bit if sixteen_bit else tuning().tile_logits
    if most is None or has_few_logits(head, x_BTD):
        return None
    return max(1, most // jax.eval_shape(head, x_BTD).shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_of_tiles(
    head: Callable[..., jax.Array],
    x_IBtD: jax.Array,
    targets_IBt: jax.Array,
    parameters: list[jax.Array],
    _scale: jax.Array,
) -> jax.Array:
    """Sum over the tiles I of the loss of `head(x_BtD, parameters)`."""

    def add(nats: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return nats + loss_of_head(lambda x: head(x, parameters), *tile), None

    return jax.lax.scan(add, jnp.zeros(()), (x_IBtD, targets_IBt))[0]


_Gradients = tuple[jax.Array, list[jax.Array]]
_Residuals = tuple[_Gradients, jax.Array]


def _forward_of_tiles(
    head: Callable[..., jax.Array],
    x_IBtD: jax.Array,
    targets_IBt: jax.Array,
    parameters: list[jax.Array],
    scale: jax.Array,
) -> tuple[jax.Array, _Residuals]:
    """The loss, and the gradients of scale * loss, which the backward pass only has to rescale."""

    def add(
        sums: tuple[jax.Array, list[jax.Array]], tile: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, list[jax.Array]], jax.Array]:
        x_BtD, targets_Bt = tile

        def loss(x_BtD: jax.Array, parameters: list[jax.Array]) -> jax.Array:
            return loss_of_head(lambda x: head(x, parameters), x_BtD, targets_Bt)

        nats, gradients = jax.vjp(loss, x_BtD, parameters)
        x_bar_BtD, new = gradients(scale)
        return jax.tree.map(jnp.add, sums, (nats, new)), x_bar_BtD

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters)
    (nats, parameters_bar), x_bar_IBtD = jax.lax.scan(add, zeros, (x_IBtD, targets_IBt))
    return nats, ((x_bar_IBtD, parameters_bar), scale)


def _backward_of_tiles(
    _head: Callable[..., jax.Array], residuals: _Residuals, nats_bar: jax.Array
) -> tuple[jax.Array, None, list[jax.Array], jax.Array]:
    gradients, scale = residuals
    factor = nats_bar / scale
    x_bar_IBtD, parameters_bar = jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients)
    return x_bar_IBtD, None, parameters_bar, jnp.zeros_like(scale)


_loss_of_tiles.defvjp(_forward_of_tiles, _backward_of_tiles)
