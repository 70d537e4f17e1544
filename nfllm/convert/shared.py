"""Parts of a checkpoint that GPT-2, GPT-NeoX and Llama share, under different names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nfllm.config import ModelConfig
from nfllm.convert.foreign import TensorReader, Tensors, split_layers
from nfllm.model.parameters import Params


class LayerReader(NamedTuple):
    """Reads the tensors of all layers, stacked over layers, [L, ...]."""

    tensors: TensorReader
    prefix: str
    config: ModelConfig

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The tensors `name`, each of `shape`."""
        return self.tensors.take_layers(self.prefix + name, self.config.num_layers, shape)

    def matrix(self, name: str, rows: int, columns: int) -> np.ndarray:
        """Matrices [L, rows, columns], which the file stores as [columns, rows]."""
        return self.take(f"{name}.weight", columns, rows).swapaxes(1, 2)

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """The parameters of a normalization."""
        parts = _norm_parts(name, self.config.normalization)
        return {ours: self.take(theirs, self.config.embed_dim) for ours, theirs in parts.items()}


class Names(NamedTuple):
    """The names of an architecture's tensors.

    Attributes:
      embedding: name of the token embedding.
      final_norm: name of the final normalization, without `.weight` and `.bias`.
      head: name of the output head.
      layers: prefix of the names of a layer's tensors, with {} for its index.
    """

    embedding: str
    final_norm: str
    head: str
    layers: str

    def read_layers(self, tensors: TensorReader, config: ModelConfig) -> LayerReader:
        """A reader of the layers' tensors."""
        return LayerReader(tensors, self.layers, config)

    def read_ends(self, tensors: TensorReader, config: ModelConfig, vocab_size: int) -> Params:
        """Our token embedding, final normalization and head."""
        width = config.embed_dim
        norm = _norm_parts(self.final_norm, config.final_normalization)
        ends: Params = {
            "token_embedding": tensors.take(self.embedding, (vocab_size, width)),
            "final_norm": {ours: tensors.take(theirs, (width,)) for ours, theirs in norm.items()},
        }
        if not config.ties_embeddings:
            ends["head_embedding"] = tensors.take(self.head, (vocab_size, width))
        return ends

    def write(self, params: Params, config: ModelConfig, per_layer: Tensors) -> Tensors:
        """All tensors: those of the stacked `per_layer`, and embedding, final norm and head."""
        tensors = {self.embedding: params["token_embedding"]}
        if not config.ties_embeddings:
            tensors[self.head] = params["head_embedding"]
        final_norm = write_norm(self.final_norm, params["final_norm"])
        return tensors | final_norm | split_layers(per_layer, self.layers)


def write_norm(name: str, norm: Mapping[str, np.ndarray]) -> Tensors:
    """The inverse of `LayerReader.norm`."""
    return {f"{name}.weight" if key == "scale" else f"{name}.bias": x for key, x in norm.items()}


def _norm_parts(name: str, normalization: str) -> dict[str, str]:
    parts = {"scale": f"{name}.weight", "bias": f"{name}.bias"}
    return {"scale": parts["scale"]} if normalization == "rmsnorm" else parts


def full_qkv_bias(attention: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """Bias of query, key and value, [L, 3, H, K]; zeros if our model has none."""
    if config.attention_bias == "all":
        return attention["qkv_bias"]
    shape = (config.num_layers, 3, config.num_heads, config.head_dim)
    bias = np.zeros(shape, np.float32)
    if config.attention_bias == "qk":
        bias[:, :2] = attention["qk_bias"]
    return bias


def layer_bias(
    module: Mapping[str, np.ndarray], name: str, num_layers: int, width: int
) -> np.ndarray:
    """The module's bias `name`, [L, width]; zeros if our model has none."""
    return module[name] if name in module else np.zeros((num_layers, width), np.float32)
