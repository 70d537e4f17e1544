"""What units respond to: some classes of inputs, or some inputs within each class.

Classes are integer labels of tokens: token ids, or a few categories (keyword, name, operator, ...).
The response of a unit is the absolute value of its output; below 1e-18, whose square float32 cannot
hold, it counts as none.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import Arrays, as_array, as_float32, check_axes
from nfllm.analysis.shown import shown_in_a_line

_GROUP = 64
_LEAST = 1e-18


@functools.partial(jax.jit, static_argnames="num_classes")
def _sums_by_class(
    post: jax.Array, classes: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    labels = classes.reshape(-1).astype(jnp.int32)  # num_classes may not fit into their own type
    responses = jnp.abs(post).reshape(post.shape[0], -1, post.shape[-1])
    responses = jnp.where(responses < _LEAST, 0.0, responses)
    number = jax.ops.segment_sum(jnp.ones(labels.shape, jnp.int32), labels, num_classes)
    total, squares = (
        jax.vmap(lambda x: _sum_by_class(x, labels, num_classes))(x)
        for x in (responses, responses**2)
    )
    return number, total, squares


def _sum_by_class(x: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Sums `[C, F]` of the rows of x `[N, F]` of each label: in groups of 64, then of their sums.

    Adding a million equal float32 numbers one after the other would be off by a percent.
    """
    most = x.shape[0]
    while most > _GROUP:
        labels = jnp.where((labels >= 0) & (labels < num_classes), labels, num_classes)
        num_groups = x.shape[0] // _GROUP + num_classes + 1
        order = jnp.argsort(labels)
        ordered = labels[order]
        rank = jnp.arange(x.shape[0]) - jnp.searchsorted(ordered, ordered)
        # A group ends where its class does.
        group = jnp.cumsum(rank % _GROUP == 0) - 1
        x = jax.ops.segment_sum(x, jnp.zeros_like(order).at[order].set(group), num_groups)
        unused = jnp.full(num_groups, num_classes, labels.dtype)
        labels = unused.at[group].set(ordered)
        most = -(-most // _GROUP)
    return jax.ops.segment_sum(x, labels, num_classes)


@shown_in_a_line
class ClassResponses(NamedTuple):
    """Responses of each unit summed over the tokens of each class. Mergeable over batches.

    Example:
      >>> post = [[[1.0, 2.0], [1.0, 0.0]]]  # one layer, two tokens, two units
      >>> ClassResponses.of(post, classes=[0, 1], num_classes=2).specialization().round(4)
      Array([[0.    , 0.6931]], dtype=float32)
    """

    num_tokens: jax.Array
    """`[C]`, tokens of each class."""
    total: jax.Array
    """`[L, C, F]`, sum of responses."""
    squares: jax.Array
    """`[L, C, F]`, sum of squared responses."""

    @classmethod
    def of(cls, post: Arrays, classes: Arrays, num_classes: int) -> ClassResponses:
        """State of one batch.

        Args:
          post: `[L, ..., F]` outputs of the units.
          classes: `[...]`, the class of each token, 0 to C - 1; tokens of any other are left out.
          num_classes: C.

        Raises:
          ValueError: The shapes do not belong together.
        """
        post, classes = as_float32(post), as_array(classes)
        check_axes("post", post, "L ... F")
        if post.shape[1:-1] != classes.shape:
            raise ValueError(
                f"post and classes: expected [L, ..., F] and [...], got {post.shape} and "
                f"{classes.shape}"
            )
        return cls(*_sums_by_class(post, classes, num_classes))

    def merge(self, other: ClassResponses) -> ClassResponses:
        """The state of both batches."""
        return ClassResponses(
            self.num_tokens + other.num_tokens,
            self.total + other.total,
            self.squares + other.squares,
        )

    def specialization(self) -> jax.Array:
        r"""Input specialization of each unit, `[L, F]`, in nats.

        Kullback-Leibler divergence :math:`\sum_c r_c \ln (r_c / f_c)` of the shares r of a unit's
        response that go to each class from the frequencies f of the classes: 0 for a unit that
        responds to all alike, :math:`-\ln f_c` for one that responds to class c only. NaN for a
        unit that never responds.
        """
        share = self._share()
        frequency = (self.num_tokens / self.num_tokens.sum())[None, :, None]
        ratio = jnp.where(share == 0, 1.0, share / jnp.where(frequency > 0, frequency, 1.0))
        return jnp.sum(share * jnp.log(ratio), axis=-2)

    def intra_class_selectivity(self) -> jax.Array:
        r"""How few inputs of a class a unit responds to, `[L, F]`, between 0 and 1.

        Lifetime sparseness within a class, :math:`(1 - E[r]^2 / E[r^2]) / (1 - 1/n)` (Treves &
        Rolls, 1991; Vinje & Gallant, 2000): 0 for equal responses, 1 for a response to one of the
        n inputs. Averaged over the classes with n of at least 2, weighted by the unit's response
        to each. NaN for a unit that responds to none of them, or whose squares overflow.
        """
        count = self.num_tokens[None, :, None]
        safe_count = jnp.maximum(count, 2)
        mean_square = jnp.where(self.squares > 0, self.squares / safe_count, 1.0)
        sparseness = 1 - (self.total / safe_count) ** 2 / mean_square
        sparseness = jnp.where(jnp.isinf(mean_square), jnp.nan, sparseness)
        weight = jnp.where(count >= 2, self._share(), 0.0)
        weighted = weight * sparseness / (1 - 1 / safe_count)
        return jnp.sum(weighted, axis=-2) / jnp.sum(weight, axis=-2)

    def _share(self) -> jax.Array:
        """Share of each unit's response that goes to each class, `[L, C, F]`."""
        return self.total / jnp.sum(self.total, axis=-2, keepdims=True)
