"""Next-token cross-entropy, as a sum and a count so that any grouping can be weighted exactly."""

import jax
import jax.numpy as jnp

from nfllm.config import IGNORED_LABEL


def shift_labels(labels_BT: jax.Array) -> jax.Array:
    """Targets of each position: the next label, and `IGNORED_LABEL` at the last position."""
    return jnp.pad(labels_BT[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED_LABEL)


def count_targets(labels_BT: jax.Array) -> jax.Array:
    """Number of positions that contribute to the loss; the first label is nobody's target."""
    return jnp.sum(labels_BT[:, 1:] != IGNORED_LABEL)


def next_token_loss(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Sum over targets of -log softmax(logits)[target], in nats.

    Position t is scored against label t + 1; labels equal to `IGNORED_LABEL` are left out. For the
    mean, divide by `count_targets(labels_BT)`.

    Args:
      logits_BTV: float32.
      labels_BT: int32 token ids, or `IGNORED_LABEL`.

    Returns:
      A float32 scalar.
    """
    targets_BT = shift_labels(labels_BT)
    counted_BT = targets_BT != IGNORED_LABEL
    index_BT1 = jnp.where(counted_BT, targets_BT, 0)[..., None]
    target_logit_BT = jnp.take_along_axis(logits_BTV, index_BT1, axis=-1)[..., 0]
    nats_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - target_logit_BT
    return jnp.sum(jnp.where(counted_BT, nats_BT, 0.0))
