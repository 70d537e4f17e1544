"""What a model predicts from the residual stream at each depth."""

from __future__ import annotations

import jax

from nfllm.model.decoder import Decoder
from nfllm.model.parameters import Params


def logit_lens(model: Decoder, params: Params, residual: jax.Array) -> jax.Array:
    """head(final_norm(x_l)), the logits [..., V] of hidden states [..., D] at any depth.

    The logit lens of nostalgebraist (2020). At the last depth it gives the model's own logits.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> captured = nfllm.capture(run.model, run.params, run.tokenizer.encode("def f(")[None])
      >>> logits_LTV = nfllm.logit_lens(run.model, run.params, captured.residual[:, 0])
    """
    return model.apply({"params": params}, residual, method=_read_out)  # type: ignore[return-value]


def _read_out(model: Decoder, residual: jax.Array) -> jax.Array:
    return model.head(model.final_norm(residual))
