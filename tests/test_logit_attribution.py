"""Parts of a logit, against the logits of the model, float64 and ablations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_model
from training_parts import VOCAB_SIZE, random_batch

from nfllm import capture, interventions, logit_attribution
from nfllm.model.capture import Captured

TOKENS = random_batch(0, sequences=3).tokens
TARGETS = random_batch(1, sequences=3).tokens
AGAINST = (TARGETS + 7) % VOCAB_SIZE
MODELS = [
    {"final_normalization": "none"},
    {"final_normalization": "layernorm", "attention_bias": "all", "mlp_bias": True},
    {"final_normalization": "rmsnorm", "tie_embeddings": False, "normalization": "layernorm"},
    {"architecture": "gpt_neox", "final_normalization": "layernorm", "norm_epsilon": 0.1},
    {"final_normalization": "frozen_layernorm", "tie_embeddings": False, "head_bias": True},
    {"final_normalization": "frozen_layernorm", "frozen_first_position": True},
]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model_and_params(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return random_model(0.3, **request.param)


def logits_of(captured: Captured, tokens: np.ndarray) -> np.ndarray:
    return np.take_along_axis(np.asarray(captured.logits), tokens[..., None], axis=-1)[..., 0]


def test_parts_add_up_to_the_logit(model_and_params: tuple[Any, Any]) -> None:
    captured = capture(*model_and_params, TOKENS)
    logits = logits_of(captured, TARGETS)
    parts = logit_attribution(*model_and_params, captured, TARGETS)
    np.testing.assert_allclose(parts.total(), logits, rtol=0, atol=1e-5)
    shapes = [part.shape for part in parts]
    assert shapes == [(3, 12), (2, 3, 12), (2, 3, 12), (3, 12), (2, 3, 12, 2)]
    difference = logit_attribution(*model_and_params, captured, TARGETS, AGAINST)
    expected = logits - logits_of(captured, AGAINST)
    np.testing.assert_allclose(difference.total(), expected, rtol=0, atol=1e-5)


def test_heads_add_up_to_their_attention_less_its_bias(model_and_params: tuple[Any, Any]) -> None:
    model, params = model_and_params
    captured = capture(model, params, TOKENS)
    parts = logit_attribution(model, params, captured, TARGETS)
    attention = params["blocks"]["attention"]
    bias = attention.get("out_bias", jnp.zeros((2, 16)))[:, None, None]
    only_bias = captured._replace(attention_out=jnp.broadcast_to(bias, (2, *TOKENS.shape, 16)))
    of_bias = logit_attribution(model, params, only_bias, TARGETS).attention
    np.testing.assert_allclose(parts.heads.sum(-1) + of_bias, parts.attention, rtol=0, atol=1e-5)


def test_parts_are_those_of_float64(model_and_params: tuple[Any, Any]) -> None:
    """The part goes through the norm as x does: centred, and divided by x's own spread."""
    model, params = model_and_params
    captured = capture(model, params, TOKENS)
    parts = logit_attribution(model, params, captured, TARGETS)
    x = np.asarray(captured.residual[-1], np.float64)
    table = params["token_embedding" if model.config.ties_embeddings else "head_embedding"]
    u = np.asarray(table, np.float64)[TARGETS]
    kind = model.config.final_normalization
    scale = np.asarray(params["final_norm"]["scale"], np.float64) if kind != "none" else 1.0
    is_centred = kind in ("layernorm", "frozen_layernorm")
    mean = x.mean(-1, keepdims=True) if is_centred else 0.0
    spread = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + model.config.norm_epsilon)
    if kind == "frozen_layernorm":
        gate, sigma = (np.asarray(params["final_norm"][name][0]) for name in ("norm_gate", "sigma"))
        sigma = np.where(sigma > 0, sigma, 1.0)
        if sigma.ndim:
            sigma = np.where(np.arange(12) == 0, *sigma)[:, None]
        spread = 1.0 / (gate / spread + (1.0 - gate) / sigma)
    for layer in range(2):
        out = np.asarray(captured.mlp_out[layer], np.float64)
        centred = out - (out.mean(-1, keepdims=True) if is_centred else 0.0)
        expected = (u * scale * centred / (spread if kind != "none" else 1.0)).sum(-1)
        np.testing.assert_allclose(parts.mlp[layer], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_and_params", MODELS[:1], ids=str, indirect=True)
def test_without_a_norm_the_last_layers_parts_are_what_the_logit_loses(
    model_and_params: tuple[Any, Any],
) -> None:
    """Zero ablation of each head of the last layer, with the MLP after it held, and of its MLP."""
    model, params = model_and_params
    captured = capture(model, params, TOKENS)
    parts = logit_attribution(model, params, captured, TARGETS)
    whole = logits_of(captured, TARGETS)
    held = interventions.replace_mlp(model.config, 1, captured.mlp_out)
    for head in range(2):
        off = interventions.replace_head(model.config, 1, head)
        without = capture(model, params, TOKENS, patches=[off, held])
        lost = whole - logits_of(without, TARGETS)
        np.testing.assert_allclose(parts.heads[1, ..., head], lost, rtol=0, atol=1e-5)
        found = logit_attribution(model, params, without, TARGETS)  # patched values count
        np.testing.assert_allclose(found.heads[1, ..., head], 0, atol=0)
        np.testing.assert_allclose(found.total(), logits_of(without, TARGETS), rtol=0, atol=1e-5)
    without = capture(model, params, TOKENS, patches=[interventions.replace_mlp(model.config, 1)])
    np.testing.assert_allclose(parts.mlp[1], whole - logits_of(without, TARGETS), rtol=0, atol=1e-5)


def test_one_token_for_all_positions_and_under_jit(model_and_params: tuple[Any, Any]) -> None:
    model, params = model_and_params
    captured = capture(model, params, TOKENS)
    jitted = jax.jit(lambda p, c, t: logit_attribution(model, p, c, t).total())
    found = jitted(params, captured, jnp.array(5))
    np.testing.assert_allclose(found, captured.logits[..., 5], rtol=0, atol=1e-5)


def test_targets_may_be_lists() -> None:
    model, params = random_model(0.3, head_bias=True)
    captured = capture(model, params, TOKENS)
    for against in (None, [5]):
        found, expected = (
            logit_attribution(model, params, captured, of(TARGETS), against).total()
            for of in (np.ndarray.tolist, np.asarray)
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["dyt", "derf"])
def test_elementwise_norms_are_refused(kind: str) -> None:
    model, params = random_model(0.3, final_normalization=kind)
    captured = capture(model, params, TOKENS)
    with pytest.raises(
        ValueError, match=f"model.final_normalization='{kind}' is not linear for fixed statistics"
    ):
        logit_attribution(model, params, captured, TARGETS)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (TARGETS[:2], r"token ids of shape \(2, 12\) do not broadcast to \(3, 12\)"),
        (np.full((3, 12), VOCAB_SIZE), str(VOCAB_SIZE)),
    ],
)
def test_targets_that_do_not_fit_are_errors(targets: np.ndarray, message: str) -> None:
    model, params = random_model(0.3, **MODELS[0])
    captured = capture(model, params, TOKENS)
    with pytest.raises(ValueError, match=message):
        logit_attribution(model, params, captured, targets)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_branch_scale": 0.2, "mlp_branch_scale": 0.5, "embedding_scale": "learned"},
        {"num_layers": 3, "mlp_pruned_layers": 2, "softmax_temperature": "head"},
        {"architecture": "llama", "mlp": "gated", "num_kv_heads": 1},
    ],
    ids=str,
)
def test_parts_of_other_blocks_add_up(changes: dict[str, Any]) -> None:
    model, params = random_model(0.3, final_normalization="rmsnorm", **changes)
    captured = capture(model, params, TOKENS)
    parts = logit_attribution(model, params, captured, TARGETS)
    np.testing.assert_allclose(parts.total(), logits_of(captured, TARGETS), rtol=0, atol=2e-5)
    np.testing.assert_allclose(parts.heads.sum(-1), parts.attention, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_skip": 0.5},
        {"mlp_scaling": "learned"},
        {"mlp_skip_gains": True},
        {"norm_placement": "post", "normalization": "layernorm", "final_normalization": "none"},
        {"norm_placement": "peri", "normalization": "layernorm"},
        {"head_gains": True},
        {"output_projection": "identity_residual"},
        {"branch_scaling": "learned"},
    ],
    ids=str,
)
def test_streams_that_are_no_plain_sum_are_refused_by_key(changes: dict[str, Any]) -> None:
    model, params = random_model(0.3, **changes)
    captured = capture(model, params, TOKENS)
    key = next(iter(changes))
    with pytest.raises(ValueError, match=rf"model.{key}=.* would not add up"):
        logit_attribution(model, params, captured, TARGETS)
