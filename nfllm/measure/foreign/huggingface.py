"""Sites of decoders of `transformers`, through hooks on their modules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nfllm.config import suggest
from nfllm.measure.foreign.streaming import SitesOf
from nfllm.measure.sites import LOGITS
from nfllm.model import intermediates as names


class Layout(NamedTuple):
    """Paths of the modules of a family of models, as for `model.get_submodule`.

    Attributes:
      blocks: the list of blocks.
      final_norm: the normalization after the last block.
      outputs: from a site to the module in a block whose output it is.
      joined_heads: the module in a block whose input is the concatenated output of all heads.
      inputs: from a site to the module in a block whose input it is.
    """

    blocks: str
    final_norm: str
    outputs: dict[str, str]
    joined_heads: str
    inputs: Mapping[str, str] = MappingProxyType({})


def _outputs(*modules: str | None) -> dict[str, str]:
    sites = (
        names.ATTENTION_IN,
        names.ATTENTION_OUT,
        names.MLP_IN,
        names.MLP_PRE,
        names.MLP_POST,
        names.MLP_OUT,
    )
    of_sites = zip(sites, modules, strict=True)
    return {site: module for site, module in of_sites if module is not None}


LAYOUTS = {
    "gpt2": Layout(
        "transformer.h",
        "transformer.ln_f",
        _outputs("ln_1", "attn", "ln_2", "mlp.c_fc", "mlp.act", "mlp"),
        "attn.c_proj",
    ),
    "gpt_neox": Layout(
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        _outputs(
            "input_layernorm",
            "attention",
            "post_attention_layernorm",
            "mlp.dense_h_to_4h",
            "mlp.act",
            "mlp",
        ),
        "attention.dense",
    ),
    "llama": Layout(
        "model.layers",
        "model.norm",
        _outputs(
            "input_layernorm",
            "self_attn",
            "post_attention_layernorm",
            "mlp.gate_proj",
            None,
            "mlp",
        ),
        "self_attn.o_proj",
        {names.MLP_POST: "mlp.down_proj"},
    ),
}
"""Layouts by `model.config.model_type`. In a gated MLP, `mlp_pre` is the gate before its activation
and `mlp_post` the input of the last matrix, as in `nfllm.model.mlp`."""


def from_transformers(
    model: Any, sites: Iterable[str] | None = None, layout: Layout | None = None
) -> SitesOf:
    """The sites of a causal language model of `transformers`, for `nfllm.foreign.analyze`.

    With grouped heads, attention probabilities are those of every query head. Queries, keys, values
    and attention logits are not available. `docs/guides/arrays.md` has an example.

    Args:
      model: for example a GPT2LMHeadModel, GPTNeoXForCausalLM or LlamaForCausalLM, loaded with
        `attn_implementation="eager"`, in `eval()`, on any device.
      sites: the sites to capture, each of which takes memory; by default all available ones.
      layout: the layout of a family that is not in `LAYOUTS`; without it such a model gives
        `attention_probs` and `logits`.

    Returns:
      The function from token ids to sites.

    Raises:
      ValueError: a site is not available; on a call, the model is in training mode or computes no
        attention probabilities.
    """
    layout = layout or LAYOUTS.get(model.config.model_type)
    known = [names.ATTENTION_PROBS, LOGITS]
    if layout is not None:
        known += [names.RESIDUAL, names.HEAD_OUT, *layout.outputs, *layout.inputs]
    if isinstance(sites, str):
        raise ValueError(f"sites={sites!r} must be a list of sites, such as [{sites!r}]")
    wanted = set(known if sites is None else sites)
    for site in sorted(wanted - set(known)):
        raise ValueError(
            f"a {model.config.model_type!r} model does not give the site {site!r}; "
            f"{suggest(site, known)}"
        )

    def sites_of(tokens_BT: np.ndarray) -> dict[str, Any]:
        import torch

        if model.training:
            raise ValueError("the model is in training mode, with dropout; call model.eval() first")
        captured: dict[str, list[Any]] = {}
        tokens = torch.as_tensor(np.array(tokens_BT), dtype=torch.long, device=model.device)
        wants_probs = names.ATTENTION_PROBS in wanted
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for handle in _hooks(model, layout, wanted, captured):
                hooks.callback(handle.remove)
            found = model(tokens, output_attentions=wants_probs, use_cache=False)
        given: dict[str, Any] = dict(captured)
        if wants_probs:
            given[names.ATTENTION_PROBS] = _attentions(found)
        if LOGITS in wanted:
            given[LOGITS] = found.logits
        if names.HEAD_OUT in given:
            num_heads = model.config.num_attention_heads
            given[names.HEAD_OUT] = [
                x.unflatten(-1, (num_heads, -1)) for x in given[names.HEAD_OUT]
            ]
        return given

    return sites_of


def _attentions(found: Any) -> Any:
    if not found.attentions or any(probs is None for probs in found.attentions):
        raise ValueError(
            "the model computes no attention probabilities: load it with "
            'from_pretrained(..., attn_implementation="eager"), or call '
            'model.set_attn_implementation("eager")'
        )
    return found.attentions


def _hooks(
    model: Any, layout: Layout | None, wanted: set[str], captured: dict[str, list[Any]]
) -> Iterable[Any]:
    """Hooks that append the array at each site to `captured[site]`, block after block."""
    if layout is None:
        return

    def into(site: str, *, of_input: bool) -> Callable[..., None]:
        values = captured.setdefault(site, [])

        def hook(module: Any, args: Any, kwargs: Any, output: Any = None) -> None:
            value = (args[0] if args else kwargs["hidden_states"]) if of_input else output
            values.append(value[0] if isinstance(value, tuple) else value)

        return hook

    blocks = model.get_submodule(layout.blocks)
    inputs = [(names.RESIDUAL, block) for block in blocks]
    inputs += [(names.RESIDUAL, model.get_submodule(layout.final_norm))]
    inputs += [(names.HEAD_OUT, block.get_submodule(layout.joined_heads)) for block in blocks]
    for site, path in layout.inputs.items():
        inputs += [(site, block.get_submodule(path)) for block in blocks]
    for site, module in inputs:
        if site in wanted:
            yield module.register_forward_pre_hook(into(site, of_input=True), with_kwargs=True)
    for site, path in layout.outputs.items():
        if site in wanted:
            for block in blocks:
                module = block.get_submodule(path)
                yield module.register_forward_hook(into(site, of_input=False), with_kwargs=True)
