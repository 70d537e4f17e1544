"""Runs a model once and returns its intermediates, stacked over layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nfllm.analysis.shown import shown_in_a_line
from nfllm.model import intermediates as names
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import INTERMEDIATES
from nfllm.model.layers import join_layers
from nfllm.model.normalizations import by_site
from nfllm.model.parameters import Params, Variables
from nfllm.model.patch import Patch, patch_variables
from nfllm.model.token_ids import check_token_ids


@shown_in_a_line
class Captured(NamedTuple):
    """Intermediates of one forward pass; masked attention logits are float32's lowest number.

    `residual[l]` is the input of block l; `residual[L]` the output of the last block, before the
    final normalization. `query` and `key` are after rotation and normalization, `query` also after
    division by a learned temperature. With shaped attention, logits and probabilities are those of
    its softmax, while `head_out` is mixed by the shaped weights. The MLP's fields have an entry for
    each layer with an MLP: fewer than L with `model.mlp_pruned_layers`, and none in `mlp_pre` and
    `mlp_post` if the MLP is fused. A mixer without softmax (`model.mixer="regla"`) has no attention
    logits and probabilities: these fields have no layer. Its `head_out` is taken after its norm.
    """

    residual: jax.Array  # [L+1, B, T, D]
    attention_in: jax.Array  # [L, B, T, D], after the normalization; of queries and keys
    query: jax.Array  # [L, B, T, H, K]
    key: jax.Array  # [L, B, T, G, K]; G is H, or model.num_kv_heads
    value: jax.Array  # [L, B, T, G, K]
    attention_logits: jax.Array  # [L, B, H, T, S]
    attention_probs: jax.Array  # [L, B, H, T, S]
    head_out: jax.Array  # [L, B, T, H, K], values mixed by each head, before the output matrix
    attention_out: jax.Array  # [L, B, T, D], what attention adds to the stream, with its gain
    mlp_in: jax.Array  # [L, B, T, D], after the normalization
    mlp_pre: jax.Array  # [L, B, T, F]
    mlp_post: jax.Array  # [L, B, T, F]
    mlp_out: jax.Array  # [L, B, T, D], what the MLP adds to the stream, with its gain
    logits: jax.Array  # [B, T, V]
    # By site of a point function, such as DyT: share of |alpha x + shift| > 2, [L, B], of final [B]
    saturation: dict[str, jax.Array] = {}  # noqa: RUF012 (never written to)


def capture(
    model: Decoder, params: Params, tokens_BT: jax.Array, *, patches: Patch | Sequence[Patch] = ()
) -> Captured:
    """The intermediates of `model` on `tokens_BT`, in the model's own types.

    The result takes memory: 2 * L B H T² numbers only for attention logits and probabilities. To
    compute statistics over a dataset, use `nfllm.analyze`.

    Args:
      model: the decoder.
      params: its parameters.
      tokens_BT: `[B, T]` token ids, T at most the context length.
      patches: values that replace some of those that the model computes; see
        `nfllm.interventions`.

    Returns:
      The arrays named in `Captured`, with their shapes.

    Raises:
      ValueError: a token id is outside the model's vocabulary, the ids are not [B, T], or a patch
        does not fit its site.

    Example:
      >>> import nfllm
      >>> run = nfllm.load_run("runs/default")
      >>> captured = capture(run.model, run.params, run.tokenizer.encode("def f(x):")[None])
      >>> entropy_LBHT = nfllm.analysis.attention_entropy(captured.attention_probs)  # nats
    """
    check_token_ids(tokens_BT, model.vocab_size)
    tokens_BT = jnp.asarray(tokens_BT)
    if tokens_BT.ndim != 2:
        raise ValueError(
            f"token ids are [B, T], not {list(tokens_BT.shape)}; give tokens[None] for one text"
        )
    shapes = site_shapes(model, tokens_BT)
    variables = patch_variables(patches, shapes, model.config)
    return _capture(model, params, variables, tokens_BT)


def site_shapes(model: Decoder, tokens_BT: jax.Array) -> dict[str, tuple[int, ...]]:
    """The shape of each site that can be patched, for these tokens, as in `Captured`."""
    config, (B, T) = model.config, tokens_BT.shape
    sizes = {
        "L": config.num_layers,
        "B": B,
        "T": T,
        "S": T,
        "D": config.embed_dim,
        "H": config.num_heads,
        "G": config.kv_heads,
        "K": config.head_dim,
        "F": config.mlp_width,
    }
    shapes = {name: tuple(sizes[axis] for axis in site.axes) for name, site in names.SITES.items()}
    num_layers, *stream = shapes[names.RESIDUAL]
    shapes[names.RESIDUAL] = (num_layers + 1, *stream)
    if not config.has_attention_maps:
        for name in (names.ATTENTION_LOGITS, names.ATTENTION_PROBS):
            shapes[name] = (0, *shapes[name][1:])
    for name in names.MLP_SITES:
        is_hidden = name in (names.MLP_PRE, names.MLP_POST)
        depth = 0 if is_hidden and not config.has_hidden_layers else config.num_mlp_layers
        shapes[name] = (depth, *shapes[name][1:])
    return shapes


@jax.jit(static_argnums=0)
def _capture(model: Decoder, params: Params, patches: Variables, tokens_BT: jax.Array) -> Captured:
    variables = {"params": params, **patches}
    logits_BTV, state = model.apply(variables, tokens_BT, mutable=[INTERMEDIATES])
    recorded = state[INTERMEDIATES]
    found = join_layers(recorded)
    shapes = site_shapes(model, tokens_BT)
    sites = {
        site: found[site] if site in found else jnp.zeros(shapes[site], model.dtype)
        for site in names.SITES
    }
    last = recorded[names.RESIDUAL]
    sites[names.RESIDUAL] = jnp.concatenate([sites[names.RESIDUAL], last[None]])
    saturation = by_site(model.config, found, recorded, names.SATURATION)
    return Captured(**sites, logits=logits_BTV, saturation=saturation)
