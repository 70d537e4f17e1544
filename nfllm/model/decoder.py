"""The decoder-only language model: embedding, blocks, final normalization, head.

Single-letter axes, suffixed to array names, here and everywhere in nfllm:
  B batch, T query position, S key position, D model width, H heads, G heads of keys and values,
  K head width, F MLP width, V vocabulary, L layers, C one of query, key and value;
  in training A micro-batches, N rows of [B, T] flattened; t a block of T.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nfllm.config import ConfigError, ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.block import Block
from nfllm.model.cache import CACHE, positions, start_of
from nfllm.model.dropout import dropout
from nfllm.model.head import unembed
from nfllm.model.intermediates import COLLECTIONS, PATCHES, UPDATES, record, record_size
from nfllm.model.layers import BLOCKS, stacks
from nfllm.model.normalizations import normalization
from nfllm.model.parameters import constant_param
from nfllm.model.part_checks import check_waiting
from nfllm.model.tuning import tuning


class Decoder(nn.Module):
    """A GPT-2, GPT-NeoX or Llama shaped decoder.

    Parameters are float32. Those of the blocks are stacked over layers, [L, ...], scanned or
    unrolled: checkpoints do not depend on that choice.

    Attributes:
      config: the architecture.
      vocab_size: V, the rows of the embedding table.
      dtype: type of matrix products; the residual stream is float32, as under torch autocast.

    Example:
      >>> import nfllm
      >>> config = nfllm.load_run("runs/default").config
      >>> model, tokens_BT = Decoder(config.model, vocab_size=256), jnp.array([[0, 1, 2]])
      >>> params = jax.eval_shape(model.init, jax.random.key(0), tokens_BT)["params"]
      >>> jax.eval_shape(model.apply, {"params": params}, tokens_BT).shape
      (1, 3, 256)
    """

    config: ModelConfig
    vocab_size: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Declares parameters and submodules."""
        check_waiting()
        config = self.config
        init = nn.initializers.normal(config.init_std)
        table = (self.vocab_size, config.embed_dim)
        self.token_embedding = self.param("token_embedding", init, table)
        if config.architecture == "gpt2":
            shape = (config.context_length, config.embed_dim)
            self.position_embedding = self.param("position_embedding", init, shape)
        if config.embedding_scale == "learned":
            self.embedding_gain = constant_param(self, "embedding_gain", config.embed_dim**0.5)
        if not config.ties_embeddings:
            self.head_embedding = self.param("head_embedding", init, table)
        if config.activation == "learnable_leaky_relu" and config.slope_sharing == "model":
            self.slope = constant_param(self, "slope", config.slope)
        self.embedding_norm = normalization(config, "embedding", jnp.dtype("float32"))
        for name, depth in stacks(config).items():
            has_mlp = config.num_mlp_layers > 0 and name == BLOCKS
            setattr(self, name, _stacked_blocks(config, depth)(config, self.dtype, has_mlp))
        if config.head_bias:
            self.head_bias = constant_param(self, "head_bias", 0.0, (self.vocab_size,))
        self.final_norm = normalization(config, "final", self.dtype)

    def __call__(
        self, tokens_BT: jax.Array, *, dropout_rows_B: jax.Array | None = None
    ) -> jax.Array:
        """Next-token logits [B, T, V], float32, of token ids [B, T].

        Args:
          tokens_BT: token ids, int32, T at most `config.context_length`.
          dropout_rows_B: index of each sequence in the global batch. With it dropout is on, and the
            caller must pass `rngs={"dropout": key}`; without it there is no dropout.

        Raises:
          ConfigError: there is no token, or T exceeds `config.context_length`.
        """
        return self.head(self.features(tokens_BT, dropout_rows_B=dropout_rows_B))

    def features(
        self, tokens_BT: jax.Array, *, dropout_rows_B: jax.Array | None = None
    ) -> jax.Array:
        """The last residual stream after the final normalization, [B, T, D]."""
        config = self.config
        length = tokens_BT.shape[-1]
        if not tokens_BT.size:
            raise ConfigError(f"tokens of shape {tokens_BT.shape} hold no token; give at least one")
        if length > config.context_length:
            raise ConfigError(
                f"a sequence of {length} tokens exceeds model.context_length="
                f"{config.context_length}; cut it, or build the model with a longer context"
            )
        x_BTD = self.token_embedding[tokens_BT]
        if config.architecture == "gpt2":
            x_BTD = x_BTD + self._position_rows(length)
        if config.embedding_scale == "learned":
            x_BTD = self.embedding_gain * x_BTD
        x_BTD = self.embedding_norm(x_BTD)
        if dropout_rows_B is not None:
            key = self.make_rng("dropout")
            x_BTD = dropout(x_BTD, config.embedding_dropout, key, dropout_rows_B)
        slope = self.slope if hasattr(self, "slope") else None
        for name in stacks(config):
            x_BTD, _ = getattr(self, name)(x_BTD, dropout_rows_B, slope)
        x_BTD = record(self, names.RESIDUAL, x_BTD)
        record_size(self, names.RESIDUAL, x_BTD)
        return self.final_norm(x_BTD)

    def _position_rows(self, length: int) -> jax.Array:
        """Learned position embeddings of the tokens of this call, [1, T, D], or [B, T, D]."""
        start_B = start_of(self)
        if start_B is None:
            return self.position_embedding[None, :length]
        return self.position_embedding[positions(length, start_B)]

    def head(self, x: jax.Array) -> jax.Array:
        """Logits [..., V], float32, of hidden states [..., D]."""
        config = self.config
        table = self.token_embedding if config.ties_embeddings else self.head_embedding
        logits = unembed(x, table.astype(self.dtype))
        if config.head_bias:
            logits += self.head_bias[(None,) * (logits.ndim - 1)]
        return logits


def _stacked_blocks(config: ModelConfig, depth: int) -> type[Block]:
    """`Block` over `depth` layers: one compiled body that loops, or all layers unrolled."""
    scan = tuning().scan_layers if config.scan_layers is None else config.scan_layers
    block = nn.remat(Block, prevent_cse=not scan) if config.remat else Block
    return nn.scan(
        block,
        variable_axes=dict.fromkeys(("params", CACHE, PATCHES, UPDATES, *COLLECTIONS), 0),
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
        unroll=1 if scan else depth,
    )
