"""Runs a model once and returns what it computed inside, stacked over layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfllm.model import intermediates as names
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import INTERMEDIATES
from nfllm.model.token_ids import check_token_ids


class Captured(NamedTuple):
    """Intermediates of one forward pass; masked attention logits are float32's lowest number.

    `residual[l]` is the input of block l; `residual[L]` the output of the last block, before the
    final normalization. `query` and `key` are after rotation and normalization.
    """

    residual: jax.Array  # [L+1, B, T, D]
    query: jax.Array  # [L, B, T, H, K]
    key: jax.Array  # [L, B, T, H, K]
    attention_logits: jax.Array  # [L, B, H, T, S]
    attention_probs: jax.Array  # [L, B, H, T, S]
    attention_out: jax.Array  # [L, B, T, D], what attention adds to the residual stream
    mlp_pre: jax.Array  # [L, B, T, F]
    mlp_post: jax.Array  # [L, B, T, F]
    mlp_out: jax.Array  # [L, B, T, D], what the MLP adds to the residual stream
    logits: jax.Array  # [B, T, V]


def capture(model: Decoder, params: Any, tokens_BT: jax.Array) -> Captured:
    """The intermediates of `model` on `tokens_BT`, in the model's own types.

    Memory is that of the result: 2 * L B H T² numbers for the attention maps alone. To stream
    statistics over a dataset instead, see `nfllm.analyze`.

    Args:
      model: the decoder.
      params: its parameters.
      tokens_BT: `[B, T]` token ids, T at most the context length.

    Returns:
      The arrays named in `Captured`, with their shapes.

    Raises:
      ValueError: a token id is no row of the model's table.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> captured = capture(run.model, run.params, run.tokenizer.encode("def f(x):")[None])
      >>> entropy_LBHT = nfllm.analysis.attention_entropy(captured.attention_probs)  # nats
    """
    check_token_ids(tokens_BT, model.vocab_size)
    return _capture(model, params, jnp.asarray(tokens_BT))


@jax.jit(static_argnums=0)
def _capture(model: Decoder, params: Any, tokens_BT: jax.Array) -> Captured:
    logits_BTV, state = model.apply({"params": params}, tokens_BT, mutable=[INTERMEDIATES])
    recorded = state[INTERMEDIATES]
    blocks = recorded["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    last = recorded[names.RESIDUAL]
    return Captured(
        residual=jnp.concatenate([blocks[names.RESIDUAL], last[None]]),
        query=attention[names.QUERY],
        key=attention[names.KEY],
        attention_logits=attention[names.ATTENTION_LOGITS],
        attention_probs=attention[names.ATTENTION_PROBS],
        attention_out=attention[names.ATTENTION_OUT],
        mlp_pre=mlp[names.MLP_PRE],
        mlp_post=mlp[names.MLP_POST],
        mlp_out=mlp[names.MLP_OUT],
        logits=logits_BTV,
    )
