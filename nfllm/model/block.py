"""One decoder block: the residual wiring of GPT-2 and Llama, or GPT-NeoX, around its branches."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.attention import Attention
from nfllm.model.dropout import dropout
from nfllm.model.frozen_norm import value_input
from nfllm.model.intermediates import record, record_size
from nfllm.model.mlp import MLPS
from nfllm.model.normalizations import normalization
from nfllm.model.residual import branch_output, join


class Block(nn.Module):
    """x + Attention(N1(x)), then + MLP(N2(.)) of the sum (gpt2, llama) or of x (gpt_neox).

    `nfllm.model.residual` has the gains of these sums, and their other normalizations. A block
    without an MLP (`model.mlp_pruned_layers`) ends with the first sum.
    """

    config: ModelConfig
    dtype: jnp.dtype
    has_mlp: bool = True

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, dropout_rows_B: jax.Array | None, model_slope: jax.Array | None
    ) -> tuple[jax.Array, None]:
        """Maps the residual stream [B, T, D] to the next; `nn.scan` requires the None."""
        config = self.config
        attention_norm = normalization(config, "attention", self.dtype, name="attention_norm")
        attention = Attention(config, self.dtype, name="attention")

        x_BTD = record(self, names.RESIDUAL, x_BTD)
        record_size(self, names.RESIDUAL, x_BTD)
        attention_in_BTD = record(self, names.ATTENTION_IN, attention_norm(x_BTD))
        value_in_BTD = value_input(config, attention_norm, x_BTD)
        attention_out_BTD = branch_output(
            self, config, "attention", attention(attention_in_BTD, dropout_rows_B, value_in_BTD)
        )
        x_out_BTD = join(
            self, config, "attention", x_BTD, self._drop(attention_out_BTD, dropout_rows_B)
        )
        if not self.has_mlp:
            return x_out_BTD, None
        mlp_norm = normalization(config, "mlp", self.dtype, name="mlp_norm")
        mlp = MLPS[config.mlp](config, self.dtype, name="mlp")
        mlp_input_BTD = x_BTD if config.architecture == "gpt_neox" else x_out_BTD
        mlp_in_BTD = record(self, names.MLP_IN, mlp_norm(mlp_input_BTD))
        mlp_out_BTD = branch_output(self, config, "mlp", mlp(mlp_in_BTD, model_slope))
        return join(self, config, "mlp", x_out_BTD, self._drop(mlp_out_BTD, dropout_rows_B)), None

    def _drop(self, x_BTD: jax.Array, rows_B: jax.Array | None) -> jax.Array:
        if rows_B is None:
            return x_BTD
        return dropout(x_BTD, self.config.residual_dropout, self.make_rng("dropout"), rows_B)
