"""The limits of a block's residual sums, weights and attention; part of `check_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfllm.config.checks import ConfigError, at_least, needs
from nfllm.config.names import FUSED_ATTENTION

if TYPE_CHECKING:
    from nfllm.config.keys import ModelConfig

_SCALES = ("attention_branch_scale", "mlp_branch_scale", "attention_skip", "mlp_skip")


def check_residual(model: ModelConfig) -> None:
    """Raises ConfigError for residual sums or norm placements that contradict other keys."""
    for key in _SCALES:
        at_least(model, "model", key, 0)
    _check_placement(model)
    if model.branch_scaling == "fixed":
        for key in ("attention_branch_scale", "mlp_branch_scale"):
            if getattr(model, key) == 0:
                raise ConfigError(
                    f"model.{key}=0.0 leaves the branch nothing to add with model.branch_scaling="
                    "'fixed'; use 'learned', which starts there, or another scale"
                )
    if model.mlp_scaling == "learned":
        needs(
            model,
            "model",
            {"mlp_branch_scale": 1.0, "branch_scaling": "fixed"}
            | {"mlp_skip": 1.0, "mlp_skip_gains": False},
            "model.mlp_scaling='learned', which has gains of its own",
        )
    if model.architecture == "gpt_neox":
        needs(
            model,
            "model",
            {"mlp_skip": 1.0, "mlp_skip_gains": False},
            "model.architecture='gpt_neox', whose branches share model.attention_skip",
        )
    if model.mlp_skip_gains and model.mlp_skip == 0:
        raise ConfigError(
            "model.mlp_skip_gains=True has no effect with model.mlp_skip=0.0; leave one of them out"
        )


def check_weights(model: ModelConfig) -> None:
    """Raises ConfigError for matrices that are normalized twice, or without effect."""
    if model.weight_reparametrization == "none":
        return
    if model.first_query_std == 0:
        raise ConfigError(
            f"model.weight_reparametrization={model.weight_reparametrization!r} divides by the "
            "size of every matrix, but those of the queries start at 0, by model.query_init_std="
            f"{model.query_init_std} with model.attention_shaping={model.attention_shaping!r}; "
            "set model.query_init_std above 0"
        )
    needs(
        model,
        "model",
        {"mlp_weight_norm": "none", "residual_init": "plain"},
        f"model.weight_reparametrization={model.weight_reparametrization!r}, which sets the size "
        "of every matrix",
    )


def check_kv_heads(model: ModelConfig) -> None:
    """Raises ConfigError if `num_kv_heads` does not fit `num_heads` or other keys."""
    if model.num_kv_heads is None:
        return
    at_least(model, "model", "num_kv_heads", 1)
    if model.num_heads % model.num_kv_heads:
        raise ConfigError(
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads="
            f"{model.num_heads}; choose a divisor of {model.num_heads}"
        )
    if not model.groups_heads:
        return
    beside = f"model.num_kv_heads={model.num_kv_heads} below model.num_heads={model.num_heads}"
    needs(
        model,
        "model",
        {"value_projection": "dense"},
        f"{beside}, which makes values narrower than the stream",
    )
    if model.attention_bias == "qk":
        raise ConfigError(
            f"model.attention_bias='qk' does not work with {beside}; use 'all' or 'none'"
        )


def check_mixer(model: ModelConfig) -> None:
    """Raises ConfigError for keys of softmax attention if the mixer has no softmax."""
    if not model.has_attention_maps:
        needs(
            model,
            "model",
            {"attention_implementation": "auto", "attention_shaping": "none"}
            | {"attention_transform": "none", "softmax_temperature": "none"}
            | {"attention_dropout": 0.0},
            f"model.mixer={model.mixer!r}, which has no softmax",
        )


def check_shaping(model: ModelConfig) -> None:
    """Raises ConfigError for attention shaping or projections that contradict other keys."""
    if model.query_init_std is not None:
        at_least(model, "model", "query_init_std", 0)
    if model.attention_shaping != "none":
        chosen = model.attention_implementation
        if chosen in FUSED_ATTENTION:
            raise ConfigError(
                f"model.attention_shaping={model.attention_shaping!r} needs attention maps, which "
                f"model.attention_implementation={chosen!r} does not give; use 'auto', 'explicit' "
                "or 'blocks'"
            )
    for key in ("value_projection", "output_projection"):
        if (found := getattr(model, key)) != "dense" and model.attention_bias == "all":
            raise ConfigError(
                f"model.{key}={found!r} has no bias, but model.attention_bias='all'; set "
                f"model.attention_bias to 'qk' or 'none', or model.{key} to 'dense'"
            )


def _check_placement(model: ModelConfig) -> None:
    placement = model.norm_placement
    if placement == "pre":
        return
    if all(model.normalization_of(branch) == "none" for branch in model.branches):
        raise ConfigError(
            f"model.norm_placement={placement!r} has no effect: no branch has a normalization; "
            "choose one, or set model.norm_placement to 'pre'"
        )
    if placement == "post":
        if model.architecture == "gpt_neox":
            raise ConfigError(
                "model.norm_placement='post' does not work with model.architecture='gpt_neox', "
                "whose two branches share one sum; use 'peri' or 'output', or model.architecture="
                "'gpt2'"
            )
        return
    needs(
        model,
        "model",
        {"attention_output_normalization": "none"},
        f"model.norm_placement={placement!r}, which puts model.normalization there",
    )
