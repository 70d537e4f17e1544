"""Normalized matrices: by rows, by columns, or by their largest singular value.

The parameter is a raw kernel W, [..., I, O] from I inputs to O outputs, on which weight decay acts.
The matrix that multiplies activations is, by `model.mlp_weight_norm` or
`model.weight_reparametrization`,

  weight_input   g_i W_ij / |W_i.|  with a gain for each input (the code of NerVE)
  weight_output  g_j W_ij / |W_.j|  with a gain for each output (torch's weight_norm of a Linear)
  hypersphere    W_ij / |W_.j|
  spectral       W / σ              (arXiv 1802.05957)
  sigma          γ W / σ            with one gain (σReparam, arXiv 2303.06296)

Gains of weight norm start at the norms, so that the matrix is unchanged; γ starts at 1. σ is
estimated by one step of power iteration from a vector, which is a measured parameter: a training
step stores the improved vector.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.scaling import safe_sqrt
from nfllm.config import ModelConfig
from nfllm.model.intermediates import record_update
from nfllm.model.parameters import constant_param, start_param
from nfllm.model.power_iteration import SMALLEST_NORM, leading_direction, norm, power_iteration


def reparametrized(module: nn.Module, name: str, kernel: jax.Array, method: str) -> jax.Array:
    """The matrix that `module` uses instead of its raw `kernel` [..., I, O], float32.

    `name` is that of the kernel's parameter, such as `in_kernel`: gains are then `in_gain`, and the
    vector of power iteration `in_direction`.
    """
    prefix = name.removesuffix("kernel")
    if method == "none":
        return kernel
    if method == "hypersphere":
        size = safe_sqrt(jnp.sum(kernel**2, axis=-2, keepdims=True))
        return kernel / jnp.maximum(size, SMALLEST_NORM)
    if method in ("weight_input", "weight_output"):
        axis = -1 if method == "weight_input" else -2
        size = norm(kernel, axis)
        gain = start_param(module, f"{prefix}gain", lambda: size.squeeze(axis))
        return jnp.expand_dims(gain, axis) / size * kernel
    # The stored vector has a length of I for spectral norm, as in torch, and of O for sigmaReparam.
    outward = kernel if method == "sigma" else jnp.swapaxes(kernel, -1, -2)
    u = start_param(module, f"{prefix}direction", lambda: leading_direction(outward))
    sigma, next_u = power_iteration(outward, jax.lax.stop_gradient(u))
    record_update(module, f"{prefix}direction", lambda: next_u)
    scale = 1.0 / sigma
    if method == "sigma":
        scale *= constant_param(module, f"{prefix}gain", 1.0, sigma.shape)
    return scale[..., None, None] * kernel


def mlp_kernel(
    module: nn.Module, config: ModelConfig, name: str, kernel_IO: jax.Array
) -> jax.Array:
    """The normalized matrix of an MLP."""
    every = config.weight_reparametrization
    method = config.mlp_weight_norm if every == "none" else every
    return reparametrized(module, name, kernel_IO, method)


def attention_kernel(
    module: nn.Module, config: ModelConfig, name: str, kernel: jax.Array
) -> jax.Array:
    """The normalized matrices of attention: `out_kernel` [H, K, D], or C matrices [D, C, H, K]."""
    if config.weight_reparametrization == "none":
        return kernel
    if name == "out_kernel":
        matrix = kernel.reshape(-1, kernel.shape[-1])
        used = reparametrized(module, name, matrix, config.weight_reparametrization)
        return used.reshape(kernel.shape)
    embed_dim, parts = kernel.shape[:2]
    matrices = jnp.moveaxis(kernel.reshape(embed_dim, parts, -1), 1, 0)
    used = reparametrized(module, name, matrices, config.weight_reparametrization)
    return jnp.moveaxis(used, 0, 1).reshape(kernel.shape)
