"""Models that nfllm did not make: as functions, and as modules of Flax."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from random_model import random_model
from training_parts import VOCAB_SIZE, random_batch

from nfllm import analyze, capture, foreign
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.metrics import METRICS
from nfllm.model.capture import Captured

pytestmark = pytest.mark.slow

TOKENS = random_batch(0, sequences=3).tokens
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model_and_params() -> tuple[Any, Any]:
    return random_model(0.3, activation="gelu")


@pytest.fixture(scope="module")
def captured(model_and_params: tuple[Any, Any]) -> Captured:
    return capture(*model_and_params, TOKENS)


def test_all_metrics_of_captured_arrays_are_those_of_the_model(
    model_and_params: tuple[Any, Any], captured: Captured
) -> None:
    """With layers as a tuple, as transformers gives them; filler rows are left out."""

    def sites_of(tokens: np.ndarray) -> dict[str, Any]:
        sites = capture(*model_and_params, tokens)._asdict()
        del sites["saturation"]  # of our own normalizations
        return {name: x if name == "logits" else tuple(x) for name, x in sites.items()}

    labels = np.concatenate([TOKENS, np.full_like(TOKENS[:1], IGNORED_LABEL)])
    filled = Batch(np.concatenate([TOKENS, TOKENS[:1]]), labels)
    names = [name for name in METRICS if name not in ("spectra", "saturation")]
    found = foreign.analyze(sites_of, [filled], names)
    expected = analyze(*model_and_params, [TOKENS], names)
    assert found.keys() == expected.keys()
    for name in ("head_entropy", "mlp_ratio", "residual_norm", "query_norm"):
        np.testing.assert_allclose(found[name].mean, expected[name].mean, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(
        found["ledger"]["logits"].max_abs, expected["ledger"]["logits"].max_abs
    )


def test_entropy_of_probabilities_alone(captured: Captured) -> None:
    probs = np.asarray(captured.attention_probs, np.float64)
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1).mean((1, 3))
    metrics = ["head_entropy", "ledger"]
    found = foreign.analyze(
        lambda _: {"attention_probs": captured.attention_probs}, [TOKENS], metrics
    )
    np.testing.assert_allclose(found["head_entropy"].mean, entropy, atol=2e-6)
    assert list(found["ledger"]) == ["attention_probs"]


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"ledger"}))  # which counts what there is
def test_a_metric_whose_sites_are_not_given_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"the metric '{name}' needs the site '.*logits"):
        foreign.analyze(lambda _: {"logits": np.zeros((3, 12, 50))}, [TOKENS], [name])


PROBS = np.tile(np.tri(12) / np.arange(1, 13)[:, None], (2, 3, 4, 1, 1))


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (
            {"attention_prob": PROBS},
            "unknown site 'attention_prob'; did you mean 'attention_prob",
        ),
        ({"attention_probs": PROBS[0]}, r"but its axes are \[L, B, H, T, S\]; a tuple"),
        ({"attention_probs": PROBS[:, :2]}, "by the tokens and the sites before it B=3, not 2"),
        (
            {"attention_probs": PROBS[..., :11]},
            "by the tokens and the sites before it S=12, not",
        ),
        ({"attention_probs": 2 * PROBS}, "is not a distribution"),
        (
            {"mlp_out": np.zeros((2, 3, 12, 8)), "residual": np.zeros((2, 3, 12, 8))},
            "by the tokens and the sites before it L=2, not 1",
        ),
        ({"logits": np.zeros((3, 12, 4))}, r"but the model's logits have 4 entries"),
    ],
)
def test_sites_that_do_not_fit_are_errors(sites: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foreign.analyze(lambda _: sites, [TOKENS])


def test_linen_modules_that_scan(model_and_params: tuple[Any, Any], captured: Captured) -> None:
    model, params = model_and_params
    where = {
        "attention_probs": "blocks/attention/attention_probs",
        "mlp_post": "blocks/mlp/mlp_post",
        "mlp_out": "blocks/mlp/__call__",
        "residual": ["blocks/residual", "residual"],
    }
    found = foreign.from_linen(model, {"params": params}, where)(TOKENS)
    assert set(found) == {*where, "logits"}
    for site, value in found.items():
        stacked = np.stack(value)
        np.testing.assert_allclose(stacked, getattr(captured, site), rtol=1e-5, atol=1e-6)


NUM_LAYERS = 11  # of which the last comes after the second in alphabetical order


class LinenDecoder(nn.Module):
    """Blocks of Flax's own attention, called one after the other."""

    @nn.compact
    def __call__(self, tokens: Any, *, scale: float) -> Any:
        x = scale * nn.Embed(VOCAB_SIZE, 8)(tokens)
        for layer in range(NUM_LAYERS):
            self.sow("intermediates", f"residual_{layer}", x)
            self.sow("intermediates", f"number_{layer}", jnp.full_like(x, layer))
            mask = nn.make_causal_mask(tokens)
            attention = nn.MultiHeadDotProductAttention(2, name=f"attention_{layer}")
            x = x + attention(x, mask=mask, sow_weights=True)
        self.sow("intermediates", "last", x)
        return nn.Dense(VOCAB_SIZE)(x)


class NnxBlock(nnx.Module):
    def __init__(self, layer: int, rngs: nnx.Rngs) -> None:
        self.layer = layer
        self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        self.sow(nnx.Intermediate, "residual", x)
        self.sow(nnx.Intermediate, "number", jnp.full_like(x, self.layer))
        mask = nnx.make_causal_mask(x[..., 0])
        return x + self.attention(x, mask=mask, sow_weights=True)


class NnxDecoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB_SIZE, 8, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(layer, rngs) for layer in range(NUM_LAYERS)])
        self.head = nnx.Linear(8, VOCAB_SIZE, rngs=rngs)

    def __call__(self, tokens: Any, *, scale: float) -> Any:
        x = scale * self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        self.sow(nnx.Intermediate, "last", x)
        return self.head(x)


def _linen() -> tuple[Any, Any]:
    module = LinenDecoder()
    variables = module.init(jnp.array([0, 1], jnp.uint32), jnp.asarray(TOKENS), scale=2.0)
    where = {
        "attention_probs": "attention_*/attention_weights",
        "residual": ["residual_*", "last"],
        "mlp_out": "number_*",
    }
    sites_of = foreign.from_linen(module, {"params": variables["params"]}, where, scale=2.0)
    embeddings = variables["params"]["Embed_0"]["embedding"]
    return sites_of, embeddings


def _nnx() -> tuple[Any, Any]:
    module = NnxDecoder(nnx.Rngs(0))
    where = {
        "attention_probs": "blocks/*/attention/attention_weights",
        "residual": ["blocks/*/residual", "last"],
        "mlp_out": "blocks/*/number",
    }
    return foreign.from_nnx(module, where, scale=2.0), module.embed.embedding.get_value()


@pytest.mark.parametrize("make", [_linen, _nnx])
def test_modules_of_flax_that_sow(make: Any) -> None:
    sites_of, embeddings = make()
    sites = sites_of(TOKENS)
    assert {site: np.stack(x).shape for site, x in sites.items()} == {
        "attention_probs": (NUM_LAYERS, 3, 2, 12, 12),
        "residual": (NUM_LAYERS + 1, 3, 12, 8),
        "mlp_out": (NUM_LAYERS, 3, 12, 8),
        "logits": (3, 12, VOCAB_SIZE),
    }
    stream = np.stack(sites["residual"])
    np.testing.assert_array_equal(np.stack(sites["mlp_out"])[:, 0, 0, 0], range(NUM_LAYERS))
    np.testing.assert_array_equal(stream[0], 2 * np.asarray(embeddings)[TOKENS])
    probs = np.stack(sites["attention_probs"]).astype(np.float64)
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1).mean((1, 3))
    found = foreign.analyze(sites_of, [TOKENS[:2], TOKENS[2:]], ["head_entropy"])
    np.testing.assert_allclose(found["head_entropy"].mean, entropy, atol=2e-6)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        self.sow("own", "number", x)
        return x + nn.Dense(8, name="mlp")(x)


class LinenBlocks(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(VOCAB_SIZE, 8, name="embed")(tokens)
        for layer in range(NUM_LAYERS):
            x = LinenBlock(name=f"block_{layer}")(x)
        return nn.Dense(VOCAB_SIZE)(x)


def test_a_pattern_does_not_extend_over_submodules() -> None:
    """And outputs of submodules are found beside what modules sow into a collection."""
    module, tokens = LinenBlocks(), jnp.asarray(TOKENS)
    variables = {"params": module.init(jax.random.key(0), tokens)["params"]}
    where = {"residual": ["embed/__call__", "block_*/__call__"], "mlp_out": "block_*/number"}
    sites = foreign.from_linen(module, variables, where, collection="own")(tokens)
    assert [len(sites[site]) for site in where] == [NUM_LAYERS + 1, NUM_LAYERS]
    np.testing.assert_array_equal(sites["residual"][:-1], sites["mlp_out"])


def test_a_name_in_place_of_a_list_of_sites_is_refused() -> None:
    model = types.SimpleNamespace(config=types.SimpleNamespace(model_type="gpt2"))
    with pytest.raises(ValueError, match=r"sites='head_out' must be a list .* \['head_out'\]"):
        foreign.from_transformers(model, "head_out")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"attention": "*"}, "unknown site 'attention'"),
        ({"mlp_out": "attentoin_*"}, "matches the pattern 'attentoin_.*; there is .*attention_10"),
    ],
)
def test_patterns_that_fit_nothing_are_errors(where: Any, message: str) -> None:
    module = LinenDecoder()
    tokens = jnp.asarray(TOKENS)
    params = module.init(jnp.array([0, 1], jnp.uint32), tokens, scale=1.0)["params"]
    with pytest.raises(ValueError, match=message):
        foreign.from_linen(module, {"params": params}, where, scale=1.0)(tokens)


def test_no_other_framework_is_imported() -> None:
    code = (
        "import sys, nfllm; nfllm.foreign.from_transformers; "
        "sys.exit(not {'torch', 'transformers'}.isdisjoint(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
