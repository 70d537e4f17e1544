"""The limits of the section `model`: an error names the key, the value and a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.block_limits import (
    check_kv_heads,
    check_mixer,
    check_residual,
    check_shaping,
    check_weights,
)
from nfllm.config.checks import ConfigError, at_least, between, check_types, no_effect, positive
from nfllm.config.frozen_limits import check_frozen
from nfllm.config.names import FUSED_ATTENTION
from nfllm.config.normalization_limits import check_groups, check_point_functions

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError for invalid values."""
    check_types(model, "model")
    for key in ("num_layers", "num_heads", "embed_dim"):
        at_least(model, "model", key, 1)
    at_least(model, "model", "context_length", 2)  # a token, and the next
    if model.mlp_dim is not None:
        at_least(model, "model", "mlp_dim", 1)
    for key in ("embedding_dropout", "attention_dropout", "residual_dropout"):
        between(model, "model", key, 0.0, 1.0)
    positive(model, "model", "norm_epsilon")
    positive(model, "model", "init_std")
    if model.embed_dim % model.num_heads:
        raise ConfigError(
            f"model.num_heads={model.num_heads} does not divide model.embed_dim="
            f"{model.embed_dim}; choose a divisor of {model.embed_dim}"
        )
    check_kv_heads(model)
    check_mixer(model)
    _check_attention_implementation(model)
    check_frozen(model)
    check_point_functions(model)
    check_groups(model)
    _check_activation(model)
    _check_mlp(model)
    check_residual(model)
    check_weights(model)
    check_shaping(model)
    _check_temperature(model)
    _check_positions(model)


def _check_attention_implementation(model: ModelConfig) -> None:
    chosen = model.attention_implementation
    if chosen not in ("auto", "explicit") and model.attention_dropout:
        raise ConfigError(
            f"model.attention_implementation={chosen!r} has no dropout, but "
            f"model.attention_dropout={model.attention_dropout}; use 'auto' or 'explicit'"
        )
    if chosen in FUSED_ATTENTION and model.attention_transform != "none":
        raise ConfigError(
            f"model.attention_transform={model.attention_transform!r} needs attention logits, "
            f"which model.attention_implementation={chosen!r} does not give; use 'auto', "
            "'explicit' or 'blocks'"
        )
    if chosen == "cudnn" and (model.head_dim % 8 or model.head_dim > 256):
        raise ConfigError(
            "model.attention_implementation='cudnn' needs a head width that is a multiple of 8 "
            f"and at most 256, but model.embed_dim={model.embed_dim} over model.num_heads="
            f"{model.num_heads} gives {model.head_dim}; use 'auto', or change the heads"
        )


def _check_activation(model: ModelConfig) -> None:
    if model.negative_slope is not None and model.activation not in (
        "leaky_relu",
        "learnable_leaky_relu",
    ):
        raise ConfigError(
            f"model.negative_slope={model.negative_slope} has no effect with model.activation="
            f"{model.activation!r}; set model.activation to 'leaky_relu' or "
            "'learnable_leaky_relu', or leave the slope unset"
        )
    if model.slope_sharing is not None and model.activation != "learnable_leaky_relu":
        raise ConfigError(
            f"model.slope_sharing={model.slope_sharing!r} has no effect with model.activation="
            f"{model.activation!r}; set model.activation to 'learnable_leaky_relu', or leave the "
            "sharing unset"
        )
    if model.helu_margin is not None:
        if model.activation != "helu":
            raise ConfigError(
                f"model.helu_margin={model.helu_margin} has no effect with model.activation="
                f"{model.activation!r}; set model.activation to 'helu', or leave the margin unset"
            )
        positive(model, "model", "helu_margin")


def _check_mlp(model: ModelConfig) -> None:
    at_least(model, "model", "mlp_pruned_layers", 0)
    if model.mlp_pruned_layers >= model.num_layers:
        raise ConfigError(
            f"model.mlp_pruned_layers={model.mlp_pruned_layers} must be below model.num_layers="
            f"{model.num_layers}; for no MLP at all set model.mlp to 'none'"
        )
    if model.has_hidden_layers:
        return
    neutral: dict[str, object] = {
        "activation": "identity",
        "mlp_dim": None,
        "mlp_bias": False,
        "mlp_hidden_normalization": "none",
    }
    if model.mlp == "none":
        neutral |= {"mlp_pruned_layers": 0, "mlp_scaling": "none", "mlp_branch_scale": 1.0}
        neutral |= {"mlp_skip": 1.0, "mlp_skip_gains": False, "mlp_weight_norm": "none"}
        neutral |= {"mlp_normalization": None}
    beside, remedy = f"with model.mlp={model.mlp!r}", "set that key to 'two_layer' or 'gated'"
    no_effect(model, "model", neutral, beside, remedy)


def _check_temperature(model: ModelConfig) -> None:
    if model.softmax_temperature_init is None:
        return
    if model.softmax_temperature == "none":
        raise ConfigError(
            f"model.softmax_temperature_init={model.softmax_temperature_init} has no effect with "
            "model.softmax_temperature='none'; set that key to 'head' or 'head_position', or leave "
            "the start value unset"
        )
    positive(model, "model", "softmax_temperature_init")


def _check_positions(model: ModelConfig) -> None:
    if model.architecture == "gpt2":
        for key in ("rotary_fraction", "rotary_base"):
            if getattr(model, key) is not None:
                raise ConfigError(
                    f"model.{key}={getattr(model, key)} has no effect with model.architecture="
                    "'gpt2', whose positions are learned; use 'gpt_neox' or 'llama', or leave "
                    f"model.{key} unset"
                )
        return
    if model.rotary_fraction is not None:
        between(model, "model", "rotary_fraction", 0.0, 1.0, closed=True)
    if model.rotary_base is not None:
        positive(model, "model", "rotary_base")
    if model.rotary_dim % 2 or model.rotary_dim == 0:
        raise ConfigError(
            f"model.rotary_fraction gives a rotary width of {model.rotary_dim} of head width "
            f"{model.head_dim}; rotation works on pairs, so choose a fraction that makes it "
            "even and at least 2"
        )
