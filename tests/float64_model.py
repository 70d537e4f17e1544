"""A GPT-2 decoder in NumPy float64, written from its equations: norms by their gate."""

from typing import Any

import numpy as np
from scipy.special import erf

from nfllm.config import ModelConfig

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x / np.sqrt(2.0))),
    "relu": lambda x: np.maximum(x, 0.0),
    "identity": lambda x: x,
}


def logits(config: ModelConfig, params: Any, tokens_BT: np.ndarray) -> np.ndarray:
    """[B, T, V], float64, of a gpt2 model without query-key norms and learned extras."""
    p = as_float64(params)
    length = tokens_BT.shape[1]
    x = p["token_embedding"][tokens_BT] + p["position_embedding"][:length]
    for layer in range(config.num_layers):
        block = layer_of(p["blocks"], layer)
        x = x + attention(config, block, x)
        inner = norm(config, "mlp", block.get("mlp_norm"), x)
        mlp = block["mlp"]
        hidden = ACTIVATIONS[config.activation](inner @ mlp["in_kernel"] + mlp.get("in_bias", 0.0))
        x = x + hidden @ mlp["out_kernel"] + mlp.get("out_bias", 0.0)
    x = norm(config, "final", p.get("final_norm"), x)
    table = p["token_embedding" if config.ties_embeddings else "head_embedding"]
    return x @ table.T + p.get("head_bias", 0.0)


def attention(config: ModelConfig, block: Any, x: np.ndarray) -> np.ndarray:
    own, length = block["attention"], x.shape[1]
    bias = np.zeros((3, config.num_heads, config.head_dim))
    bias[: len(own.get("qk_bias", ()))] += own.get("qk_bias", 0.0)
    bias = bias + own.get("qkv_bias", 0.0)
    inputs = [norm(config, "attention", block.get("attention_norm"), x, path) for path in (0, 0, 1)]
    q, k, v = (
        np.einsum("BTD,DHK->BHTK", inputs[c], own["qkv_kernel"][:, c]) + bias[c][:, None]
        for c in range(3)
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(config.head_dim)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return np.einsum("BHTK,HKD->BTD", probs @ v, own["out_kernel"]) + own.get("out_bias", 0.0)


def norm(config: ModelConfig, site: Any, own: Any, x: np.ndarray, path: int = 0) -> np.ndarray:
    """LayerNorm, and what is left of it as the gate closes; nothing where there is none."""
    name = config.normalization_at(site)
    if name == "none":
        return x
    centred = x - x.mean(-1, keepdims=True)
    real = np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)
    gate, sigma = 1.0, np.float64(1.0)
    if name == "frozen_layernorm":
        gate, sigma = own["norm_gate"][path], own["sigma"][path]
        if config.frozen_first_position:
            sigma = np.where(np.arange(x.shape[1]) == 0, sigma[0], sigma[1])[:, None]
    return centred * (gate / real + (1.0 - gate) / sigma) * own["scale"] + own["bias"]


def as_float64(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: as_float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def layer_of(tree: Any, layer: int) -> Any:
    if isinstance(tree, dict):
        return {name: layer_of(value, layer) for name, value in tree.items()}
    return tree[layer]
