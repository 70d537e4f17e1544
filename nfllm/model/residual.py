"""How what a branch computes joins the residual stream."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model.parameters import constant_param


def add_mlp(
    block: nn.Module, config: ModelConfig, x_BTD: jax.Array, branch_BTD: jax.Array
) -> jax.Array:
    """The sum of the stream and of what the MLP adds to it.

    With `model.mlp_scaling="learned"` it is the scaled FFN of arXiv 2501.03489,
    `residual_gain` x + branch / `mlp_alpha`, two parameters of the block that start at 1.
    """
    if config.mlp_scaling == "none":
        return x_BTD + branch_BTD
    gain = constant_param(block, "residual_gain", 1.0)
    alpha = constant_param(block, "mlp_alpha", 1.0)
    return gain * x_BTD + branch_BTD.astype(jnp.float32) / alpha
