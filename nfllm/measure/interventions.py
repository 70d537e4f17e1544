"""Causal experiments on a model: what it computes when a head, an MLP or a layer is replaced.

Each function makes the `Patch` of one experiment, for `nfllm.capture(..., patches=[...])`:

    run = nfllm.load_run("runs/default")
    model, params = run.model, run.params
    off = nfllm.interventions.replace_head(model.config, 4, 3)             # zero ablation
    loss_without = loss(nfllm.capture(model, params, tokens_BT, patches=[off]).logits)

The replacement is 0 (zero ablation), `mean_over_positions` of a captured site (mean ablation), or
the site captured on other text (resample ablation, or activation patching).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nfllm.analysis import causal_mask
from nfllm.analysis.arrays import as_integer
from nfllm.config import ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.patch import Patch

Replacement = jax.Array | float


def replace_head(
    config: ModelConfig, layer: int, head: int, replacement: Replacement = 0.0
) -> Patch:
    """Replaces the output of one head before the output matrix, `captured.head_out`.

    Args:
      config: of the model.
      layer: the layer, from 0.
      head: the head in it, from 0.
      replacement: 0, or an array that broadcasts to [L, B, T, H, K].

    Returns:
      A patch for `nfllm.capture`.

    Raises:
      ValueError: there is no such layer or head.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> off = replace_head(run.model.config, layer=0, head=1)
      >>> tokens_BT = run.tokenizer.encode("def f(x):")[None]
      >>> captured = nfllm.capture(run.model, run.params, tokens_BT, patches=[off])
    """
    return replace_heads(_head(config, layer, head), replacement)


def replace_heads(is_head_LH: jax.Array, replacement: Replacement = 0.0) -> Patch:
    """`replace_head` for all heads where `is_head_LH`."""
    return Patch(names.HEAD_OUT, replacement, is_head_LH[:, None, None, :, None])


def replace_mlp(config: ModelConfig, layer: int, replacement: Replacement = 0.0) -> Patch:
    """Replaces what the MLP of one layer adds to the residual stream, `captured.mlp_out`.

    Raises:
      ValueError: there is no such layer, or it has no MLP.
    """
    is_layer_L = _layer(config, layer)
    if layer >= config.num_mlp_layers:
        raise ValueError(
            f"layer {layer} has no MLP: model.mlp={config.mlp!r} with "
            f"model.mlp_pruned_layers={config.mlp_pruned_layers} leaves {config.num_mlp_layers} of "
            f"{config.num_layers} layers with one"
        )
    is_layer_L = is_layer_L[: config.num_mlp_layers]
    return Patch(names.MLP_OUT, replacement, is_layer_L[:, None, None, None])


def replace_attention(config: ModelConfig, layer: int, replacement: Replacement = 0.0) -> Patch:
    """Replaces what attention adds to the residual stream in one layer, `captured.attention_out`.

    Raises:
      ValueError: there is no such layer.
    """
    return Patch(names.ATTENTION_OUT, replacement, _layer(config, layer)[:, None, None, None])


def remove_layer(config: ModelConfig, layer: int) -> list[Patch]:
    """Removes what one layer adds to the residual stream: its attention and MLP outputs are 0.

    The layer is then the identity, unless it also scales or normalizes the stream itself.

    Raises:
      ValueError: there is no such layer.
    """
    patches = [replace_attention(config, layer)]
    return [*patches, replace_mlp(config, layer)] if layer < config.num_mlp_layers else patches


def freeze_attention(config: ModelConfig, layer: int, head: int, probs_LBHTS: jax.Array) -> Patch:
    """Gives one head a fixed attention pattern, whatever the text.

    Args:
      config: of the model.
      layer: the layer, from 0.
      head: the head in it, from 0.
      probs_LBHTS: `uniform_attention(T)`, or `mean_pattern(captured.attention_probs)`.

    Raises:
      ValueError: there is no such layer or head.
    """
    return freeze_heads(_head(config, layer, head), probs_LBHTS)


def freeze_heads(is_head_LH: jax.Array, probs_LBHTS: jax.Array) -> Patch:
    """`freeze_attention` for all heads where `is_head_LH`."""
    return Patch(names.ATTENTION_PROBS, probs_LBHTS, is_head_LH[:, None, :, None, None])


def uniform_attention(length: int) -> jax.Array:
    """The pattern of maximum entropy, 1 / (t + 1) on each key of query t, [1, 1, 1, T, S]."""
    mask_TT = causal_mask(length)
    return (mask_TT / jnp.sum(mask_TT, axis=1, keepdims=True))[None, None, None]


def mean_pattern(probs_LBHTS: jax.Array) -> jax.Array:
    """Each head's attention pattern, the mean over sequences: [L, 1, H, T, S]."""
    return jnp.mean(probs_LBHTS, axis=1, keepdims=True)


def mean_over_positions(site: jax.Array) -> jax.Array:
    """The mean of a captured site [L, B, T, ...] over sequences and positions, [L, 1, 1, ...]."""
    return jnp.mean(site, axis=(1, 2), keepdims=True)


def _layer(config: ModelConfig, layer: int) -> jax.Array:
    if not 0 <= as_integer("layer", layer) < config.num_layers:
        raise ValueError(
            f"there is no layer {layer}; the model has {config.num_layers}, 0 to "
            f"{config.num_layers - 1}"
        )
    return jnp.arange(config.num_layers) == layer


def _head(config: ModelConfig, layer: int, head: int) -> jax.Array:
    is_layer_L = _layer(config, layer)
    if not 0 <= as_integer("head", head) < config.num_heads:
        raise ValueError(
            f"there is no head {head} in layer {layer}; a layer has {config.num_heads}, 0 to "
            f"{config.num_heads - 1}"
        )
    return is_layer_L[:, None] & (jnp.arange(config.num_heads) == head)[None]
