"""A fixed probe batch through a second program: entropies and health, reduced on the device.

What crosses to the host is [L, H] or [L]; no [T, T] map leaves the device, and the training program
is the same with telemetry as without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nfllm.model import intermediates as names
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import BY_PRODUCTS, STATISTICS


def make_probe(
    model: Decoder, result_sharding: jax.sharding.Sharding | None = None
) -> Callable[[Any, jax.Array], dict[str, Any]]:
    """Compiles `probe(params, tokens_BT)`, whose result is the fields of a telemetry line.

    With several processes, `result_sharding` must put a copy of the result on each: parameters that
    are sharded over all of them would leave it sharded.

    entropy_nats [L, H]: attention entropy, mean over sequences and queries.
    logit_max_abs [L, H]: largest |attention logit| among visible keys.
    residual_rms [L + 1], mlp_pre_rms [L]: root mean squares.
    mlp_pre_participation, mlp_post_participation [L]: participation ratios of the covariance
      matrices, over all tokens, of what enters the activation and of what leaves it.
    residual_max_abs [L + 1]: largest absolute value.
    nonfinite {site: [L]}: how many entries are NaN or infinite; `residual` has L + 1.
    negative_slopes [L]: of a learned leaky ReLU, one per layer also where layers share it.
    """
    config = model.config

    @functools.partial(jax.jit, out_shardings=result_sharding)
    def probe(params: Any, tokens_BT: jax.Array) -> dict[str, Any]:
        _, state = model.apply(
            {"params": params},
            tokens_BT,
            mutable=[STATISTICS, BY_PRODUCTS],
            method=model.features,
        )
        statistics = state[STATISTICS]
        block = statistics["blocks"]
        attention, mlp = block["attention"], block["mlp"]

        def residual(statistic: str) -> jax.Array:
            name = f"{statistic}_{names.RESIDUAL}"
            return jnp.append(block[name], statistics[name])

        fields = {
            "entropy_nats": state[BY_PRODUCTS]["blocks"]["attention"][names.ENTROPY],
            "logit_max_abs": attention[names.LOGIT_MAX_ABS],
            "mlp_pre_rms": mlp[f"{names.RMS}_{names.MLP_PRE}"],
            "mlp_pre_participation": mlp[f"{names.PARTICIPATION}_{names.MLP_PRE}"],
            "mlp_post_participation": mlp[f"{names.PARTICIPATION}_{names.MLP_POST}"],
            "residual_rms": residual(names.RMS),
            "residual_max_abs": residual(names.MAX_ABS),
            "nonfinite": names.nonfinite_by_site(statistics, names.WATCHED),
        }
        if config.activation == "learnable_leaky_relu":
            shared = config.slope_sharing == "model"
            slope = params["slope"] if shared else params["blocks"]["mlp"]["slope"]
            fields["negative_slopes"] = jnp.broadcast_to(slope, (config.num_layers,))
        return fields

    return lambda params, tokens_BT: jax.device_get(probe(params, tokens_BT))
