"""The MLP of a block: with a hidden layer, with a gate, or fused into one matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.covariance import Covariance
from nfllm.analysis.spectra import participation_ratio, projected_participation_ratio
from nfllm.config import ModelConfig
from nfllm.config.names import EVONORM
from nfllm.model import intermediates as names
from nfllm.model.activations import ACTIVATIONS, STARTS
from nfllm.model.bias import add_bias
from nfllm.model.evonorm import EvoNorm
from nfllm.model.intermediates import record, record_size, record_statistic
from nfllm.model.normalizations import normalization
from nfllm.model.parameters import Start, constant_param, constant_params, params_of_one_key
from nfllm.model.weight_norm import mlp_kernel


class TwoLayerMlp(nn.Module):
    """activation(x W_in + b_in) W_out + b_out, with `in_kernel` [D, F] and `out_kernel` [F, D].

    The slope of a learned leaky ReLU is the parameter `slope`, unless all layers share one; the
    parameters of a registered activation, and of evonorm_s0, are in `activation`.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD: jax.Array, model_slope: jax.Array | None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `model_slope` is the slope that all layers share, if any."""
        config = self.config
        init = nn.initializers.normal(config.block_init_std)
        in_kernel = self.param("in_kernel", init, (config.embed_dim, config.mlp_width))
        in_kernel, out_kernel = mlp_kernel(self, config, "in_kernel", in_kernel), self._out_kernel()
        pre_BTF = record(self, names.MLP_PRE, self._linear("in_bias", x_BTD, in_kernel))
        post_BTF = record(self, names.MLP_POST, self.activate(pre_BTF, model_slope))
        self._record_statistics(x_BTD, in_kernel, pre_BTF, post_BTF)
        return self._out(post_BTF, out_kernel)

    def activate(self, pre_BTF: jax.Array, model_slope: jax.Array | None) -> jax.Array:
        """The activation; a method, so that `nfllm.measure.linear_replacement` can replace it."""
        config = self.config
        if config.activation == EVONORM:
            groups = config.evonorm_groups
            norm = EvoNorm(config.norm_epsilon, pre_BTF.dtype, groups, name="activation")
            return norm(pre_BTF)
        return ACTIVATIONS[config.activation](pre_BTF, self._coefficient(model_slope))

    def _coefficient(self, model_slope: jax.Array | None) -> jax.Array | float | dict[str, Any]:
        config = self.config
        if config.activation in STARTS:
            return constant_params(self, "activation", STARTS[config.activation])
        if config.activation == "helu":
            return config.margin
        if config.activation != "learnable_leaky_relu":
            return config.slope
        if model_slope is not None:
            return model_slope
        return constant_param(self, "slope", config.slope)

    def _out_kernel(self) -> jax.Array:
        config = self.config
        init = nn.initializers.normal(config.residual_init_std)
        kernel = self.param("out_kernel", init, (config.mlp_width, config.embed_dim))
        return mlp_kernel(self, config, "out_kernel", kernel)

    def _linear(self, bias: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = x @ kernel.astype(self.dtype)
        if not self.config.mlp_bias:
            return y
        return add_bias(y, constant_param(self, bias, 0.0, kernel.shape[-1:]))

    def _out(self, post_BTF: jax.Array, out_kernel: jax.Array) -> jax.Array:
        norm = normalization(self.config, "mlp_hidden", self.dtype, name="mlp_hidden_norm")
        return self._linear("out_bias", norm(post_BTF), out_kernel)

    def _record_statistics(
        self, x_BTD: jax.Array, kernel_DF: jax.Array, pre_BTF: jax.Array, post_BTF: jax.Array
    ) -> None:
        record_size(self, names.MLP_PRE, pre_BTF)
        # The pre-activation is x times a matrix, so a D x D covariance suffices instead of F x F.
        record_statistic(
            self,
            f"{names.PARTICIPATION}_{names.MLP_PRE}",
            lambda: projected_participation_ratio(
                Covariance.of(x_BTD, keep=0).covariance(), kernel_DF
            ),
        )
        record_statistic(
            self,
            f"{names.PARTICIPATION}_{names.MLP_POST}",
            lambda: participation_ratio(Covariance.of(post_BTF, keep=0).covariance()),
        )


class GatedMlp(TwoLayerMlp):
    """(activation(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out (arXiv 2002.05202).

    SwiGLU, GeGLU or ReGLU, by `model.activation`; `gate_kernel` is [D, F], as `in_kernel`. Recorded
    as `mlp_pre` is the gate before the activation, as `mlp_post` the product, the input of W_out.
    """

    @nn.compact
    def __call__(self, x_BTD: jax.Array, model_slope: jax.Array | None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `model_slope` is the slope that all layers share, if any."""
        config = self.config
        init = nn.initializers.normal(config.block_init_std)
        sizes = (config.embed_dim, config.mlp_width)
        starts: dict[str, Start] = {
            "in_kernel": lambda key: init(key, sizes),
            "gate_kernel": lambda key: init(jax.random.fold_in(key, 1), sizes),
        }
        in_kernel, gate_kernel = (
            mlp_kernel(self, config, name, kernel)
            for name, kernel in params_of_one_key(self, starts).items()
        )
        out_kernel = self._out_kernel()
        pre_BTF = record(self, names.MLP_PRE, self._linear("gate_bias", x_BTD, gate_kernel))
        post_BTF = self.activate(pre_BTF, model_slope) * self._linear("in_bias", x_BTD, in_kernel)
        post_BTF = record(self, names.MLP_POST, post_BTF)
        self._record_statistics(x_BTD, gate_kernel, pre_BTF, post_BTF)
        return self._out(post_BTF, out_kernel)


class FusedMlp(nn.Module):
    """x W, with `kernel` [D, D]: a two-layer MLP without activation (arXiv 2501.03489)."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD: jax.Array, model_slope: jax.Array | None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; there is no slope."""
        del model_slope
        config = self.config
        init = nn.initializers.normal(config.residual_init_std)
        kernel = self.param("kernel", init, (config.embed_dim, config.embed_dim))
        return x_BTD @ mlp_kernel(self, config, "kernel", kernel).astype(self.dtype)


MLPS: dict[str, type[nn.Module]] = {
    "two_layer": TwoLayerMlp,
    "gated": GatedMlp,
    "fused": FusedMlp,
}
"""The MLPs by `model.mlp`; with `none` a block has no MLP."""
