"""How the output of a branch is added to the residual stream.

    x <- N_sum(skip x + gain N_out(f(N(x)))),   f attention or the MLP

`model.norm_placement` chooses which of the three N are normalizations; the others are the identity.
Without any, and with skip and gain of 1, it is x + f(x).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.config.derived import Branch, Site
from nfllm.model import intermediates as names
from nfllm.model.intermediates import record
from nfllm.model.normalizations import normalization
from nfllm.model.parameters import constant_param

_RECORDED = {"attention": names.ATTENTION_OUT, "mlp": names.MLP_OUT}
_OUTPUT: dict[Branch, Site] = {"attention": "attention_output", "mlp": "mlp_output"}
_SUM: dict[Branch, Site] = {"attention": "attention_sum", "mlp": "mlp_sum"}


def branch_output(
    block: nn.Module, config: ModelConfig, branch: Branch, y_BTD: jax.Array
) -> jax.Array:
    """What a branch adds to the stream: gain N_out(y), [B, T, D].

    The gain is `model.attention_branch_scale` or `model.mlp_branch_scale`; with
    `model.branch_scaling="learned"` it is a parameter of the block that starts at this value. With
    `model.mlp_scaling="learned"` the MLP's gain is also divided by the parameter `mlp_alpha`
    (scaled FFN, arXiv 2501.03489).
    """
    site = _OUTPUT[branch]
    y_BTD = normalization(config, site, y_BTD.dtype, name=f"{site}_norm")(y_BTD)
    scale = config.branch_scale(branch)
    if config.branch_scaling == "learned":
        gain = constant_param(block, f"{branch}_branch_gain", scale)
        y_BTD = gain * y_BTD.astype(jnp.float32)
    elif scale != 1:
        y_BTD = scale * y_BTD.astype(jnp.float32)
    if branch == "mlp" and config.mlp_scaling == "learned":
        y_BTD = y_BTD.astype(jnp.float32) / constant_param(block, "mlp_alpha", 1.0)
    return record(block, _RECORDED[branch], y_BTD)


def join(
    block: nn.Module, config: ModelConfig, branch: Branch, x_BTD: jax.Array, added_BTD: jax.Array
) -> jax.Array:
    """The next stream, N_sum(skip x + added), float32 [B, T, D].

    The skip is `model.attention_skip` or `model.mlp_skip`. The skip of the MLP is also multiplied
    by parameters that start at 1: `skip_gain` [D] with `model.mlp_skip_gains` (NormFormer, arXiv
    2110.09456), and `residual_gain` with `model.mlp_scaling="learned"`.
    """
    if config.skip(branch) != 1:
        x_BTD = config.skip(branch) * x_BTD
    if branch == "mlp" and config.mlp_skip_gains:
        x_BTD = constant_param(block, "skip_gain", 1.0, x_BTD.shape[-1:])[None, None] * x_BTD
    if branch == "mlp" and config.mlp_scaling == "learned":
        x_BTD = constant_param(block, "residual_gain", 1.0) * x_BTD
    site = _SUM[branch]
    norm = normalization(config, site, jnp.dtype("float32"), name=f"{site}_norm")
    return norm(x_BTD + added_BTD)
