"""Biases that a foreign checkpoint must have: zeros if our model has none."""

from collections.abc import Mapping

import numpy as np

from nfllm.config import ModelConfig


def full_qkv_bias(attention: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """Bias of query, key and value, [L, 3, H, K]."""
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
    """The module's bias `name`, [L, width]."""
    return module[name] if name in module else np.zeros((num_layers, width), np.float32)
