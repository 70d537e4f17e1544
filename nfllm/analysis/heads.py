"""How the heads of a model spread over the range of entropies.

Shares are fractions of 1. A head whose entropy is NaN is in no quarter, so that the quarters of a
model that diverged add up to less than 1; the share of overloaded or collapsed heads is then NaN.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nfllm.analysis.arrays import Arrays, as_array, as_float32, check_axes, is_concrete
from nfllm.analysis.entropy import causal_entropy_ceiling

ReferenceMaximum = Literal["shared_observed", "per_model", "ceiling", "log_T"]


def reference_maximum(
    kind: ReferenceMaximum,
    entropy: Mapping[str, ArrayLike],
    context_length: int | Mapping[str, int],
) -> dict[str, float]:
    """The entropy M, in nats, whose quarters are the bins of a histogram, for each model.

    - `shared_observed`: the largest head entropy observed over all the models compared. The paper
      (arXiv 2410.09637) uses it. A histogram then depends on what it is compared with.
    - `per_model`: the largest head entropy of the model itself.
    - `ceiling`: ln(T!)/T, the most a causal head can reach.
    - `log_T`: ln T, which a causal head cannot reach.

    Args:
      kind: One of these four.
      entropy: Head entropies of each model, of any shape, in nats. NaN heads are left out; the
        maximum of a model (or of all models) that has only NaN heads is NaN.
      context_length: T, one number or one a model.

    Returns:
      M of each model, in nats.

    Raises:
      ValueError: Unknown kind; a model without context length; or `shared_observed` over different
        context lengths, whose entropies have no maximum in common.

    Example:
      >>> reference_maximum("shared_observed", {"relu": [1.0, 2.5], "gelu": [3.0, 3.5]}, 128)
      {'relu': 3.5, 'gelu': 3.5}
    """
    if kind not in get_args(ReferenceMaximum):
        raise ValueError(
            f"unknown kind {kind!r}; choose from {', '.join(get_args(ReferenceMaximum))}"
        )
    if isinstance(context_length, Mapping):
        lengths = dict(context_length)
    else:
        lengths = dict.fromkeys(entropy, context_length)
    missing = sorted(set(entropy) - set(lengths))
    if missing:
        raise ValueError(f"context_length is missing for {', '.join(missing)}")
    if kind == "ceiling":
        return {name: causal_entropy_ceiling(lengths[name]) for name in entropy}
    if kind == "log_T":
        return {name: float(np.log(lengths[name])) for name in entropy}
    observed = {name: _largest(values) for name, values in entropy.items()}
    if kind == "per_model":
        return observed
    if len({lengths[name] for name in entropy}) > 1:
        raise ValueError(
            f"shared_observed needs one context length, got "
            f"{ {name: lengths[name] for name in entropy} }; use 'ceiling', which gives each model "
            "its own maximum"
        )
    return dict.fromkeys(entropy, _largest(np.array(list(observed.values()))))


def _largest(values: ArrayLike) -> float:
    finite = np.asarray(as_float32(values), np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.max()) if finite.size else float("nan")


def head_histogram(entropy_LH: Arrays, maximum: ArrayLike) -> jax.Array:
    """Share of heads in [0, M/4), [M/4, M/2), [M/2, 3M/4) and [3M/4, M], in this order.

    Args:
      entropy_LH: `[L, H]` head entropies in nats.
      maximum: M in nats, a scalar (shape `[]`), see `reference_maximum`. Heads above it count in
        the last quarter.

    Returns:
      `[4]` float32, shares of all L x H heads.

    Raises:
      ValueError: `entropy_LH` is not of rank 2, or M is not positive.

    Example:
      >>> head_histogram([[0.1, 3.2], [3.9, 1.7]], maximum=4.0)
      Array([0.25, 0.25, 0.  , 0.5 ], dtype=float32)
    """
    entropy = as_float32(entropy_LH)
    check_axes("entropy_LH", entropy, "L H")
    quarter = _quarter(entropy, maximum)
    return jnp.stack([jnp.mean(quarter == i, dtype=jnp.float32) for i in range(4)])


OVERLOADED = 0.75
"""Share of M from which a head counts as overloaded in arXiv 2410.09637."""


def early_layers(num_layers: int) -> int:
    """Number of layers in the early half of a model: half of them, rounded down, at least one."""
    return max(1, num_layers // 2)


def overload_share(entropy: Arrays, maximum: ArrayLike) -> jax.Array:
    """Share of overloaded heads (entropy of 3/4 M or more), the "entropic overload" of the paper.

    Args:
      entropy: `[..., H]` head entropies in nats; `[L, H]` gives one share a layer, by depth.
      maximum: M in nats, a scalar (shape `[]`), see `reference_maximum`.

    Returns:
      `[...]` float32, shares of the H heads; NaN where the entropy of a head is NaN.

    Raises:
      ValueError: M is not positive.

    Example:
      >>> overload_share([[0.1, 3.2], [3.9, 3.7]], maximum=4.0)
      Array([0.5, 1. ], dtype=float32)
    """
    return _share_in_quarter(entropy, maximum, 3)


def collapse_share(entropy: Arrays, maximum: ArrayLike) -> jax.Array:
    """Share of collapsed heads (entropy below M/4).

    Args:
      entropy: `[..., H]` head entropies in nats; `[L, H]` gives one share a layer, by depth.
      maximum: M in nats, a scalar (shape `[]`), see `reference_maximum`.

    Returns:
      `[...]` float32, shares of the H heads; NaN where the entropy of a head is NaN.

    Raises:
      ValueError: M is not positive.

    Example:
      >>> collapse_share([[0.1, 3.2], [3.9, 3.7]], maximum=4.0)
      Array([0.5, 0. ], dtype=float32)
    """
    return _share_in_quarter(entropy, maximum, 0)


def _share_in_quarter(entropy: Arrays, maximum: ArrayLike, number: int) -> jax.Array:
    entropy = as_float32(entropy)
    check_axes("entropy", entropy, "... H")
    quarter = _quarter(entropy, maximum)
    share = jnp.mean(quarter == number, axis=-1, dtype=jnp.float32)
    return jnp.where(jnp.any(quarter < 0, axis=-1), jnp.nan, share)


def _quarter(entropy: jax.Array, maximum: ArrayLike) -> jax.Array:
    """Which quarter of [0, M] each entropy lies in, 0 to 3; -1 for NaN."""
    maximum = as_array(maximum)
    if maximum.ndim:
        raise ValueError(f"maximum: expected one number, got shape {maximum.shape}")
    if is_concrete(maximum) and np.any(np.asarray(maximum) <= 0):
        raise ValueError(f"maximum must be positive, got {maximum}")
    quarter = jnp.floor(4 * entropy / maximum.astype(jnp.float32))
    return jnp.where(jnp.isnan(quarter), -1.0, jnp.clip(quarter, 0.0, 3.0))
