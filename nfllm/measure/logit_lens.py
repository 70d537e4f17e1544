"""What a model predicts from the residual stream at each depth."""

from __future__ import annotations

import jax

from nfllm.analysis.arrays import Arrays, as_array
from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params


def logit_lens(model: Decoder, params: Params, residual: Arrays) -> jax.Array:
    """head(final_norm(x_l)), the logits [..., V] of hidden states [..., D] at any depth.

    The logit lens of nostalgebraist (2020). At the last depth it gives the model's own logits.
    With `model.frozen_first_position` the hidden states are [..., T, D], from position 0 on.

    Raises:
      ValueError: hidden states of another width, or without positions for a model that needs them.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> captured = nfllm.capture(run.model, run.params, run.tokenizer.encode("def f(")[None])
      >>> logits_LTV = nfllm.logit_lens(run.model, run.params, captured.residual[:, 0])
    """
    residual = as_array(residual)
    if residual.ndim < 1 or residual.shape[-1] != model.config.embed_dim:
        raise ValueError(
            f"hidden states of shape {list(residual.shape)} do not fit the model, whose width is "
            f"model.embed_dim={model.config.embed_dim}; give [..., D]"
        )
    if model.config.frozen_first_position and residual.ndim < 2:
        raise ValueError(
            f"hidden states of shape {list(residual.shape)} have no positions, which the final norm"
            " needs with model.frozen_first_position; give [..., T, D] from position 0 on"
        )
    return model.apply({"params": params}, residual, method=_read_out)  # type: ignore[return-value]


def _read_out(model: Decoder, residual: jax.Array) -> jax.Array:
    return model.head(model.final_norm(residual))
