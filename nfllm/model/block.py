"""One decoder block: the MLP, and the residual wiring of GPT-2 or GPT-NeoX."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.analysis.covariance import Covariance
from nfllm.analysis.spectra import participation_ratio, projected_participation_ratio
from nfllm.config import ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.activations import ACTIVATIONS
from nfllm.model.attention import Attention
from nfllm.model.bias import add_bias
from nfllm.model.dropout import dropout
from nfllm.model.intermediates import record, record_size, record_statistic
from nfllm.model.normalizations import NORMALIZATIONS
from nfllm.model.parameters import constant_param


class Mlp(nn.Module):
    """activation(x W_in + b_in) W_out + b_out, with `in_kernel` [D, F] and `out_kernel` [F, D].

    The slope of a learned leaky ReLU is the parameter `slope`, unless all layers share one.
    """

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD: jax.Array, model_slope: jax.Array | None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `model_slope` is the slope that all layers share, if any."""
        config = self.config
        init = nn.initializers.normal(config.block_init_std)
        in_kernel = self.param("in_kernel", init, (config.embed_dim, config.mlp_width))
        out_kernel = self.param("out_kernel", init, (config.mlp_width, config.embed_dim))
        pre_BTF = x_BTD @ in_kernel.astype(self.dtype)
        if config.mlp_bias:
            in_bias = constant_param(self, "in_bias", 0.0, (config.mlp_width,))
            pre_BTF = add_bias(pre_BTF, in_bias)
        pre_BTF = record(self, names.MLP_PRE, pre_BTF)
        post_BTF = ACTIVATIONS[config.activation](pre_BTF, self._coefficient(model_slope))
        post_BTF = record(self, names.MLP_POST, post_BTF)
        y_BTD = post_BTF @ out_kernel.astype(self.dtype)
        if config.mlp_bias:
            out_bias = constant_param(self, "out_bias", 0.0, (config.embed_dim,))
            y_BTD = add_bias(y_BTD, out_bias)
        y_BTD = record(self, names.MLP_OUT, y_BTD)
        record_size(self, names.MLP_PRE, pre_BTF)
        # What enters the activation is x times a matrix: D x D instead of F x F for the covariance.
        record_statistic(
            self,
            f"{names.PARTICIPATION}_{names.MLP_PRE}",
            lambda: projected_participation_ratio(
                Covariance.of(x_BTD, keep=0).covariance(), in_kernel
            ),
        )
        record_statistic(
            self,
            f"{names.PARTICIPATION}_{names.MLP_POST}",
            lambda: participation_ratio(Covariance.of(post_BTF, keep=0).covariance()),
        )
        return y_BTD

    def _coefficient(self, model_slope: jax.Array | None) -> jax.Array | float:
        config = self.config
        if config.activation == "helu":
            return config.margin
        if config.activation != "learnable_leaky_relu":
            return config.slope
        if model_slope is not None:
            return model_slope
        return constant_param(self, "slope", config.slope)


class Block(nn.Module):
    """x + Attention(N1(x)), then + MLP(N2(.)) of the sum (gpt2) or of the same x (gpt_neox)."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, dropout_rows_B: jax.Array | None, model_slope: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """Maps the residual stream [B, T, D] to the next; the None is what `nn.scan` asks for."""
        config = self.config
        norm = NORMALIZATIONS[config.normalization]
        attention_norm = norm(epsilon=config.norm_epsilon, dtype=self.dtype, name="attention_norm")
        mlp_norm = norm(epsilon=config.norm_epsilon, dtype=self.dtype, name="mlp_norm")
        attention = Attention(config, self.dtype, name="attention")
        mlp = Mlp(config, self.dtype, name="mlp")

        x_BTD = record(self, names.RESIDUAL, x_BTD)
        record_size(self, names.RESIDUAL, x_BTD)
        attention_in_BTD = record(self, names.ATTENTION_IN, attention_norm(x_BTD))
        attended_BTD = x_BTD + self._drop(
            attention(attention_in_BTD, dropout_rows_B), dropout_rows_B
        )
        mlp_input_BTD = x_BTD if config.architecture == "gpt_neox" else attended_BTD
        mlp_in_BTD = record(self, names.MLP_IN, mlp_norm(mlp_input_BTD))
        update_BTD = mlp(mlp_in_BTD, model_slope)
        return attended_BTD + self._drop(update_BTD, dropout_rows_B), None

    def _drop(self, x_BTD: jax.Array, rows_B: jax.Array | None) -> jax.Array:
        if rows_B is None:
            return x_BTD
        return dropout(x_BTD, self.config.residual_dropout, self.make_rng("dropout"), rows_B)
