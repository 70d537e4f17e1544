"""How the signal travels through depth: norms, branches, similarity of tokens, rank, tails.

`keep` is the number of leading axes that a statistic keeps: 1, the default, gives one value a
layer.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nfllm.analysis.arrays import (
    Arrays,
    as_float32,
    check_axes,
    check_same_shape,
    tail_axes,
)
from nfllm.analysis.divergence import shannon_entropy
from nfllm.analysis.scaling import center, safe_sqrt, scale_of, scaled_norm


def mean_norm(x: Arrays, *, keep: int = 1) -> jax.Array:
    r"""Mean Euclidean norm of the vectors on the last axis, :math:`E\,\|x\|_2`.

    The norm of the residual stream by depth is `mean_norm(residual)`, `[L+1, B, T, D]` ->
    `[L+1]`; that of the queries of each head is `mean_norm(q_LHBTK, keep=2)`.

    Args:
      x: `[..., D]`.
      keep: Number of leading axes to keep.

    Returns:
      The first `keep` axes of `x`, float32, in the units of `x`.

    Example:
      >>> mean_norm([[[3.0, 4.0], [0.0, 1.0]]])  # [L, T, D] -> [L]
      Array([3.], dtype=float32)
    """
    x = as_float32(x)
    check_axes("x", x, "... D")
    axes = tail_axes(x[..., 0], keep)
    scale = scale_of(x, axis=(*axes, x.ndim - 1))
    norms = safe_sqrt(jnp.sum((x / scale) ** 2, axis=-1))
    return jnp.mean(norms, axis=axes) * scale.reshape(x.shape[:keep])


def rms(x: Arrays, *, keep: int = 1) -> jax.Array:
    r"""Root mean square over all entries, :math:`\sqrt{E[x^2]}`.

    Args:
      x: `[L, ...]`, for example pre-activations `[L, B, T, F]`.
      keep: Number of leading axes to keep.

    Returns:
      The first `keep` axes of `x`, float32, in the units of `x`.

    Example:
      >>> rms([[3.0, -3.0], [0.0, 0.0]])
      Array([3., 0.], dtype=float32)
    """
    x = as_float32(x)
    axes = tail_axes(x, keep)
    scale = scale_of(x, axis=axes)
    return safe_sqrt(jnp.mean((x / scale) ** 2, axis=axes)) * scale.reshape(x.shape[:keep])


def saturation(pre: Arrays, threshold: float = 2.0, *, keep: int = 0) -> jax.Array:
    r"""Share of entries whose absolute value exceeds a threshold, :math:`P(|x| > \tau)`.

    For the input of a saturating function, such as :math:`\alpha x` of DyT's tanh: where it is
    large, the function is flat and passes little gradient. NaN where an entry is NaN.

    Args:
      pre: `[...]`.
      threshold: what counts as saturated; at 2, tanh has a slope of 0.07.
      keep: Number of leading axes to keep.

    Returns:
      The first `keep` axes of `pre`, float32, shares between 0 and 1.

    Example:
      >>> saturation([-3.0, -1.0, 0.0, 2.0, 2.5])
      Array(0.4, dtype=float32)
    """
    x = as_float32(pre)
    beyond = jnp.where(jnp.isnan(x), x, (jnp.abs(x) > threshold).astype(jnp.float32))
    return jnp.mean(beyond, axis=tail_axes(x, keep))


def branch_ratio(branch: Arrays, skip: Arrays, *, keep: int = 1) -> jax.Array:
    r"""Size of a residual branch relative to the skip connection, averaged over tokens.

    .. math:: E\left[ \|\mathrm{branch}\|_2 \,/\, \|\mathrm{skip}\|_2 \right]

    For whole blocks, `branch_ratio(residual[1:] - residual[:-1], residual[:-1])`; for attention
    alone, `branch_ratio(attention_out, residual[:-1])`.

    Args:
      branch: `[L, ..., D]`, the output of the branch.
      skip: `[L, ..., D]`, what it is added to.
      keep: Number of leading axes to keep.

    Returns:
      The first `keep` axes, float32, a ratio without unit; Inf where a token's skip is zero,
      NaN where its branch is so too.

    Raises:
      ValueError: The shapes differ.

    Example:
      >>> branch_ratio([[[3.0, 4.0]]], [[[0.0, 10.0]]])
      Array([0.5], dtype=float32)
    """
    branch, skip = as_float32(branch), as_float32(skip)
    check_same_shape("branch and skip", branch, skip)
    (branch_scale, branch_norm), (skip_scale, skip_norm) = scaled_norm(branch), scaled_norm(skip)
    ratio = (branch_scale / skip_scale * (branch_norm / skip_norm))[..., 0]
    return jnp.mean(ratio, axis=tail_axes(ratio, keep))


def token_similarity(x: Arrays) -> jax.Array:
    r"""Mean cosine similarity between the tokens of a sequence.

    .. math:: \frac{1}{T (T-1)} \sum_{s \ne t} u_s \cdot u_t
        = \frac{\|\sum_t u_t\|^2 - T}{T (T-1)}, \qquad u_t = \frac{x_t}{\|x_t\|}

    Over the ordered pairs of different tokens, in O(T D). 1 where all tokens point the same way
    (rank collapse), about 0 for unrelated ones.

    Args:
      x: `[..., T, D]`, T at least 2.

    Returns:
      `[...]` float32, a cosine between -1 and 1; NaN where a token is the zero vector.

    Raises:
      ValueError: Wrong rank, or a single token.

    Example:
      >>> token_similarity([[[1.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 5.0]]])
      Array([1., 0.], dtype=float32)
    """
    x = as_float32(x)
    check_axes("x", x, "... T D")
    num_tokens = x.shape[-2]
    if num_tokens < 2:
        raise ValueError(f"x: expected [..., T, D] with at least two tokens T, got {x.shape}")
    scale, norm = scaled_norm(x)
    unit = x / scale / norm
    total = jnp.sum(jnp.sum(unit, axis=-2) ** 2, axis=-1)
    return (total - num_tokens) / (num_tokens * (num_tokens - 1))


def effective_rank(x: Arrays) -> jax.Array:
    r"""Effective rank of each matrix (Roy & Vetterli, EUSIPCO 2007).

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = \sigma_i \Big/ \sum_j \sigma_j

    over the singular values.

    Args:
      x: `[..., T, D]`.

    Returns:
      `[...]` float32, a rank between 1 and min(T, D); NaN for a zero matrix, and where `x` has NaN.

    Example:
      >>> effective_rank([[2.0, 0.0], [0.0, 2.0]]).round(4)
      Array(2., dtype=float32)
    """
    x = as_float32(x)
    check_axes("x", x, "... T D")
    singular = jnp.linalg.svd(x / scale_of(x, axis=(-2, -1)), compute_uv=False)
    return jnp.exp(shannon_entropy(singular / jnp.sum(singular, axis=-1, keepdims=True)))


def kurtosis(x: Arrays, *, keep: int = 1) -> jax.Array:
    r"""Mean kurtosis of the vectors on the last axis.

    .. math:: E[(x - \mu)^4] \,/\, E[(x - \mu)^2]^2

    3 for a Gaussian (this is not excess kurtosis), about D for a vector with one entry that stands
    out: outlier features show here.

    Args:
      x: `[..., D]`.
      keep: Number of leading axes to keep.

    Returns:
      The first `keep` axes of `x`, float32, without unit; NaN where a vector is constant.

    Example:
      >>> kurtosis([[[1.0, -1.0, 1.0, -1.0]], [[9.0, 0.0, 0.0, 0.0]]]).round(3)
      Array([1., 2.333], dtype=float32)
    """
    x = as_float32(x)
    _, deviation = center(x / scale_of(x, axis=-1), -1)
    deviation = deviation / scale_of(deviation, axis=-1)
    variance = jnp.mean(deviation**2, axis=-1)
    values = jnp.mean(deviation**4, axis=-1) / variance**2
    return jnp.mean(values, axis=tail_axes(values, keep))


def norm_by_layer(tree: Any) -> jax.Array:
    r"""Euclidean norm over all leaves of a layer-stacked tree, for each layer.

    .. math:: n_l = \sqrt{\textstyle\sum_{\text{leaves}} \sum_i x_{l i}^2}

    Args:
      tree: Gradients (or parameters, or updates) of the blocks, each leaf `[L, ...]`.

    Returns:
      `[L]` float32, in the units of the leaves.

    Raises:
      ValueError: The tree is empty, or its leaves do not share their first axis.

    Example:
      >>> norm_by_layer({"kernel": jnp.array([[3.0], [0.0]]), "bias": jnp.array([[4.0], [2.0]])})
      Array([5., 2.], dtype=float32)
    """
    leaves = [as_float32(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"tree: expected leaves [L, ...] with one number of layers, got the shapes "
            f"{[leaf.shape for leaf in leaves]}"
        )
    rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    scale = functools.reduce(jnp.maximum, [scale_of(row, axis=1) for row in rows])
    squares = [jnp.sum((row / scale) ** 2, axis=1) for row in rows]
    return safe_sqrt(jnp.sum(jnp.stack(squares), axis=0)) * scale[:, 0]
