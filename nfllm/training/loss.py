"""Next-token cross-entropy, as a sum and a count, so that batches can be combined exactly."""

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
    return _cross_entropy(rows(logits_BTV), shift_labels(labels_BT).reshape(-1))


def loss_of_head(
    head: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """The loss of head(x_BTD) on targets [B, T], of which `IGNORED_LABEL` is none."""
    if has_few_logits(head, x_BTD):
        return _summed_nats(head(x_BTD), targets_BT)[0]
    # With logits [N, V], XLA reuses their memory for their gradient; with [B, T, V] it would copy.
    return _cross_entropy(head(rows(x_BTD)), targets_BT.reshape(-1))


def has_few_logits(head: Callable[[jax.Array], jax.Array], x: jax.Array) -> bool:
    """Whether `head(x)` is so small that JAX's own derivative of the loss is faster (`Tuning`)."""
    return 4 * jax.eval_shape(head, x).size <= tuning().plain_loss_bytes


def rows(x: jax.Array) -> jax.Array:
    """Reshapes [..., C] to [N, C]."""
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
