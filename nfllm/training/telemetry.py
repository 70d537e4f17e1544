"""Telemetry: a second program measures entropies and numerical health on a fixed probe batch.

Results are reduced to [L, H] or [L] on the device; no [T, T] map is sent to the host. The training
program is the same with and without telemetry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from nfllm.config import ModelConfig
from nfllm.model import intermediates as names
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, STATISTICS
from nfllm.model.layers import join_layers
from nfllm.model.normalizations import by_site
from nfllm.model.parameters import Params

_LEARNED = ("alpha", "slope", "residual_gain", "mlp_alpha", "temperature")


def make_probe(
    model: Decoder, result_sharding: jax.sharding.Sharding | None = None
) -> Callable[[Any, jax.Array], dict[str, Any]]:
    """Compiles `probe(params, tokens_BT)`, whose result is the fields of a telemetry line.

    With several processes, `result_sharding` must replicate the result over all processes;
    otherwise parameters that are sharded over processes would leave it sharded.

    entropy_nats [L, H]: attention entropy, mean over sequences and queries; only of a softmax.
    logit_max_abs [L, H]: largest |attention logit| among visible keys; only of a softmax.
    residual_rms [L + 1], mlp_pre_rms [L']: root mean squares; L' is the number of layers with an
      MLP.
    mlp_pre_participation, mlp_post_participation [L']: participation ratios of the covariance
      matrices, over all tokens, of the input and the output of the activation.
    residual_max_abs [L + 1]: largest absolute value.
    nonfinite {site: [L]}: number of entries that are NaN or infinite; `residual` has L + 1.
    negative_slopes [L']: slopes of a learned leaky ReLU, one per layer even if layers share it.
    saturation_SITE, alpha_SITE ([L]; [L'] for mlp; [] for final): of a point function at that site
      (before attention or MLP, on queries or keys, or final), share of |alpha x + shift| > 2, and
      alpha.
    embedding_gain []: of a scaled embedding.
    residual_gain, mlp_alpha [L']: of a scaled MLP.
    temperature_min, temperature_max, temperature_not_positive [L, H]: smallest and largest learned
      temperature of a head, and the number of temperatures that are 0 or less, which is invalid.
    entropy_threshold [L, H]: learned thresholds of the entropy regularizer, as shares of ln T.
    """
    config = model.config

    @functools.partial(jax.jit, out_shardings=result_sharding)
    def probe(params: Params, tokens_BT: jax.Array) -> dict[str, Any]:
        _, state = model.apply(
            {"params": params},
            tokens_BT,
            mutable=[STATISTICS, BY_PRODUCTS],
            method=model.features,
        )
        statistics = state[STATISTICS]
        layers = join_layers(statistics)

        def residual(statistic: str) -> jax.Array:
            name = f"{statistic}_{names.RESIDUAL}"
            return jnp.append(layers[name], statistics[name])

        fields = {
            "residual_rms": residual(names.RMS),
            "residual_max_abs": residual(names.MAX_ABS),
            "nonfinite": names.nonfinite_by_site(statistics, names.WATCHED),
        }
        if config.has_attention_maps:
            fields |= {
                "entropy_nats": join_layers(state[BY_PRODUCTS])[names.ENTROPY],
                "logit_max_abs": layers[names.LOGIT_MAX_ABS],
            }
        if config.num_mlp_layers and config.has_hidden_layers:
            fields |= {
                "mlp_pre_rms": layers[f"{names.RMS}_{names.MLP_PRE}"],
                "mlp_pre_participation": layers[f"{names.PARTICIPATION}_{names.MLP_PRE}"],
                "mlp_post_participation": layers[f"{names.PARTICIPATION}_{names.MLP_POST}"],
            }
        for site, share in by_site(config, layers, statistics, names.SATURATION).items():
            fields[f"saturation_{site}"] = share
        return fields | _learned(config, params)

    return lambda params, tokens_BT: jax.device_get(probe(params, tokens_BT))


def _with_names(tree: Any, kept: Collection[str]) -> Any:
    """The subtree of entries with these names; other names can occur in both attention and MLP."""
    return {
        name: _with_names(x, kept) if isinstance(x, dict) else x
        for name, x in tree.items()
        if isinstance(x, dict) or name in kept
    }


def _learned(config: ModelConfig, params: Params) -> dict[str, Any]:
    """The learned scalars to follow through training beside the entropies."""
    layers = join_layers(_with_names(params, _LEARNED))
    fields: dict[str, Any] = {
        f"alpha_{site}": alpha for site, alpha in by_site(config, layers, params, "alpha").items()
    }
    if config.embedding_scale == "learned":
        fields["embedding_gain"] = params["embedding_gain"]
    if config.activation == "learnable_leaky_relu":
        slope = params["slope"] if config.slope_sharing == "model" else layers["slope"]
        fields["negative_slopes"] = jnp.broadcast_to(slope, (config.num_mlp_layers,))
    if config.mlp_scaling == "learned":
        fields |= {name: layers[name] for name in ("residual_gain", "mlp_alpha")}
    if config.softmax_temperature != "none":
        temperature = layers["temperature"]
        by_head = temperature.reshape(*temperature.shape[:2], -1)
        fields["temperature_min"] = by_head.min(-1)
        fields["temperature_max"] = by_head.max(-1)
        fields["temperature_not_positive"] = jnp.sum(by_head <= 0, axis=-1)
    if "objective" in params:
        threshold = params["objective"]["entropy_threshold"]
        fields["entropy_threshold"] = jnp.broadcast_to(
            threshold, (config.num_layers, config.num_heads)
        )
    return fields
