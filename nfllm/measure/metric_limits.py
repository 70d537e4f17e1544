"""Which metrics a model has: those of attention maps, of hidden layers, of skip connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from absl import logging

from nfllm.config import ModelConfig
from nfllm.measure.metrics import DEFAULT_METRICS, Metric

_OF_HIDDEN_LAYERS = {"linear_fit", "unit_activity", "spectra"}


def default_metrics(config: ModelConfig) -> Sequence[str]:
    """`DEFAULT_METRICS`, less those of attention maps or hidden layers that the model lacks."""
    left_out: list[str] = []
    if not config.has_attention_maps:
        left_out = [name for name in DEFAULT_METRICS if name.endswith("entropy")]
        logging.warning(
            "model.mixer=%r has no attention entropy: %s are left out",
            config.mixer,
            ", ".join(left_out),
        )
    if not _has_hidden(config):
        of_mlps = [name for name in DEFAULT_METRICS if name in _OF_HIDDEN_LAYERS]
        logging.warning(
            "model.mlp=%r has no hidden layer: %s are left out", config.mlp, ", ".join(of_mlps)
        )
        left_out += of_mlps
    return [name for name in DEFAULT_METRICS if name not in left_out]


def check_metrics(chosen: Mapping[str, Metric], config: ModelConfig) -> None:
    """Raises ValueError for a metric of what the model does not have."""
    if "mlp_ratio" in chosen and config.norm_placement == "post":
        raise ValueError(
            "metric 'mlp_ratio' needs the skip connection that the MLP's output is added to, which "
            "is not captured with model.norm_placement='post'; leave the metric out"
        )
    if "attention_ratio" in chosen and config.attention_skip != 1.0:
        raise ValueError(
            "metric 'attention_ratio' needs the skip connection that attention is added to, which "
            f"is not captured with model.attention_skip={config.attention_skip}; leave the "
            "metric out"
        )
    lacking = sorted(_OF_HIDDEN_LAYERS & chosen.keys())
    if lacking and not _has_hidden(config):
        raise ValueError(
            f"metric {lacking[0]!r} is about the hidden layer of MLPs, which model.mlp="
            f"{config.mlp!r} does not have; leave the metric out"
        )


def _has_hidden(config: ModelConfig) -> bool:
    return config.has_hidden_layers and config.num_mlp_layers > 0
