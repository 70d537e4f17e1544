"""Direct logit attribution: what each layer and each head adds to the logit of a token."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nfllm.analysis.shown import shown_in_a_line
from nfllm.config import ModelConfig
from nfllm.config.names import FROZEN
from nfllm.model.capture import Captured
from nfllm.model.decoder import Decoder
from nfllm.model.frozen_norm import final_norm_factor
from nfllm.model.layers import stacks
from nfllm.model.parameters import Params
from nfllm.model.token_ids import check_token_ids

# Keys that scale or normalize the stream between layers, and keys by which what a head adds is not
# its output times its rows of the output matrix.
_OF_THE_STREAM = ("attention_skip", "mlp_skip", "mlp_skip_gains", "mlp_scaling", "norm_placement")
_OF_HEADS = (
    "attention_output_normalization",
    "branch_scaling",
    "head_gains",
    "output_projection",
    "weight_reparametrization",
)


@shown_in_a_line
class LogitAttribution(NamedTuple):
    """Parts of a logit, or of the difference of two, at each position; float32, in its units.

    `embedding`, `attention` and `mlp` are the 2L + 1 terms of the residual stream, and add up to
    the logit with `constant`. The heads of a layer add up to its attention, less its bias.
    """

    embedding: jax.Array  # [B, T], of token and position
    attention: jax.Array  # [L, B, T]
    mlp: jax.Array  # [L, B, T]
    constant: jax.Array  # [B, T], from the biases of the final normalization and of the head
    heads: jax.Array  # [L, B, T, H]

    def total(self) -> jax.Array:
        """The logit, or the difference, [B, T]."""
        return self.embedding + self.attention.sum(0) + self.mlp.sum(0) + self.constant


def logit_attribution(
    model: Decoder,
    params: Params,
    captured: Captured,
    targets: jax.Array,
    against: jax.Array | None = None,
) -> LogitAttribution:
    r"""What the embedding, each branch of each layer and each head add to the logit of a token.

    The residual stream is a sum, :math:`x = c_0 + \sum_l (a_l + m_l)`. With u the target's row of
    the output embedding (minus that of the token `against`), a part c adds :math:`u^T N c`, where N
    is the final normalization with its statistics fixed at those of x: the identity,
    :math:`\mathrm{diag}(\gamma) / \mathrm{rms}(x)`, or :math:`\mathrm{diag}(\gamma) (I - 1 1^T / D)
    / \sigma(x)`. The parts add up to the logit in float32 precision. Indirect effects of a part
    through later layers are not included (Elhage et al., "A Mathematical Framework for Transformer
    Circuits", 2021).

    Args:
      model: the decoder.
      params: its parameters.
      captured: from `nfllm.capture`, with or without patches. With a patch of `residual`, the parts
        do not add up to the logit.
      targets: token ids of a shape that broadcasts to [B, T]: at each position, the token whose
        logit is decomposed.
      against: token ids of such a shape, whose logit is subtracted.

    Returns:
      The parts, at every position.

    Raises:
      ValueError: the residual stream of the model is not a plain sum; the final normalization is
        elementwise (dyt, derf), so that parts do not add up; a token id outside the vocabulary; or
        a shape that does not broadcast.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> tokens_BT = run.tokenizer.encode("def f(x):")[None]
      >>> captured = nfllm.capture(run.model, run.params, tokens_BT[:, :-1])
      >>> parts = logit_attribution(run.model, run.params, captured, tokens_BT[:, 1:])
      >>> heads_LH = parts.heads[:, 0, -1]  # in the prediction of the last token
    """
    _check_sums(model.config)
    shape = captured.logits.shape[:-1]
    targets_BT = _broadcast(model, targets, shape)
    against_BT = None if against is None else _broadcast(model, against, shape)
    table_VD = _output_embedding(model, params)
    u_BTD = table_VD[targets_BT]
    if against_BT is not None:
        u_BTD = u_BTD - table_VD[against_BT]
    direction_BTD, constant_BT = _through_final_norm(model, params, u_BTD, captured.residual[-1])
    if model.config.head_bias:
        bias_V = jnp.asarray(params["head_bias"])
        constant_BT += bias_V[targets_BT]
        if against_BT is not None:
            constant_BT -= bias_V[against_BT]

    def along(x: jax.Array, axes: str) -> jax.Array:
        x, u = x.astype(jnp.float32), direction_BTD
        return jnp.einsum(f"{axes},BTD->{axes[:-1]}", x, u, precision=jax.lax.Precision.HIGHEST)

    # The direction seen by each head's output, through its rows of the output matrix.
    kernels = [params[name]["attention"]["out_kernel"] for name in stacks(model.config)]
    kernel_LHKD = model.config.attention_branch_scale * jnp.concatenate(kernels)
    heads_LBTH = jnp.einsum(
        "LBTHK,LHKD,BTD->LBTH",
        captured.head_out.astype(jnp.float32),
        kernel_LHKD,
        direction_BTD,
        precision=jax.lax.Precision.HIGHEST,
    )
    return LogitAttribution(
        embedding=along(captured.residual[0], "BTD"),
        attention=along(captured.attention_out, "LBTD"),
        mlp=along(captured.mlp_out, "LBTD"),
        constant=constant_BT,
        heads=heads_LBTH,
    )


def _check_sums(config: ModelConfig) -> None:
    """Raises ValueError if the stream is not a plain sum, or heads do not add linearly to it."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for key in (*_OF_THE_STREAM, *_OF_HEADS):
        if (value := getattr(config, key)) != defaults[key]:
            what = (
                "the residual stream is not a plain sum"
                if key in _OF_THE_STREAM
                else "heads do not add to the residual stream by their output matrix alone"
            )
            raise ValueError(
                f"model.{key}={value!r}: {what}, so the parts of a logit would not add up; use a "
                f"model with {defaults[key]!r}, or patch parts with nfllm.interventions"
            )


def _broadcast(model: Decoder, tokens: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Checked token ids, [B, T]."""
    check_token_ids(tokens, model.vocab_size)
    tokens = jnp.asarray(tokens)
    try:
        return jnp.broadcast_to(tokens, shape)
    except ValueError as error:
        raise ValueError(
            f"token ids of shape {tokens.shape} do not broadcast to {shape}, the sequences and "
            "positions that were captured"
        ) from error


def _output_embedding(model: Decoder, params: Params) -> jax.Array:
    tied = model.config.ties_embeddings
    return jnp.asarray(params["token_embedding" if tied else "head_embedding"])


def _through_final_norm(
    model: Decoder, params: Params, u_BTD: jax.Array, x_BTD: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """v = Nᵀ u, so that uᵀ norm(x) = vᵀ x + constant, with the statistics of x."""
    config = model.config
    kind = config.final_normalization
    if kind == "none":
        return u_BTD, jnp.zeros(u_BTD.shape[:-1], u_BTD.dtype)
    if kind not in ("layernorm", "rmsnorm", FROZEN):
        raise ValueError(
            f"model.final_normalization={kind!r} is not linear for fixed statistics, so the parts "
            "of a logit would not add up; use a model with layernorm, rmsnorm or none there, or "
            "patch parts with nfllm.interventions"
        )
    norm, x_BTD = params["final_norm"], x_BTD.astype(jnp.float32)
    v_BTD = u_BTD * norm["scale"][None, None]
    constant_BT = jnp.zeros(u_BTD.shape[:-1], u_BTD.dtype)
    if kind in ("layernorm", FROZEN):
        v_BTD = v_BTD - v_BTD.mean(-1, keepdims=True)
        x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
        constant_BT = jnp.sum(u_BTD * norm["bias"][None, None], axis=-1)
    if kind == FROZEN:
        return v_BTD * final_norm_factor(norm, x_BTD, config.norm_epsilon), constant_BT
    scale = jnp.sqrt(jnp.mean(x_BTD**2, axis=-1, keepdims=True) + config.norm_epsilon)
    return v_BTD / scale, constant_BT
