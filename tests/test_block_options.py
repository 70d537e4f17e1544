"""Residual sums, placement of norms, gains and skips, shaped attention: values, starts, errors."""

import dataclasses
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_jit import fast_jit
from random_model import random_model
from training_parts import VOCAB_SIZE, small_config

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.earlier import values_before
from nfllm.config.overrides import override_value
from nfllm.model import Decoder, capture
from nfllm.model.capture import Captured
from nfllm.model.intermediates import BY_PRODUCTS, LOSSES, STATISTICS
from nfllm.model.layers import join_layers
from nfllm.model.shaping import shaped_map

pytestmark = pytest.mark.slow

TOKENS_BT = np.asarray([[3, 17, 0, 40, 5, 21, 8, 33, 12, 49]], np.int32)  # all distinct
MODEL = small_config().model
SAS = {"value_projection": "none", "output_projection": "none", "attention_shaping": "shaped"}
GAINED = {
    "branch_scaling": "learned",
    "head_gains": True,
    "mlp_skip_gains": True,
    "attention_shaping": "shaped",
}


def captured(std: float = 0.3, **model: Any) -> tuple[Decoder, dict, Captured]:
    decoder, params = random_model(std, **model)
    return decoder, params, jax.tree.map(np.float64, capture(decoder, params, TOKENS_BT))


def logits(decoder: Decoder, params: dict) -> np.ndarray:
    return np.asarray(fast_jit(decoder.apply)({"params": params}, TOKENS_BT))


def start(**model: Any) -> dict[str, np.ndarray]:
    decoder = Decoder(small_config(model=model).model, VOCAB_SIZE)
    params = fast_jit(decoder.init)(jax.random.key(0), TOKENS_BT)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


# Every choice of a block, each as the keys that it changes.
FACTORS: dict[str, list[dict[str, Any]]] = {
    "architecture": [{}, {"architecture": "gpt_neox"}, {"architecture": "llama"}],
    "normalization": [{}, {"normalization": "layernorm"}, {"normalization": "dyt"}],
    "placement": [{}, *({"norm_placement": name} for name in ("post", "peri", "output"))],
    "embedding": [{}, {"embedding_normalization": "rmsnorm"}],
    "attention_output": [{}, {"attention_output_normalization": "layernorm"}],
    "mlp_hidden": [{}, {"mlp_hidden_normalization": "layernorm"}],
    "head_gains": [{}, {"head_gains": True}],
    "mlp_skip_gains": [{}, {"mlp_skip_gains": True}],
    "scales": [
        {},
        {"attention_branch_scale": 0.2, "mlp_branch_scale": 0.2},
        {"attention_branch_scale": 0.0, "branch_scaling": "learned"},
    ],
    "attention_skip": [{}, {"attention_skip": 0.0}],
    "mlp_skip": [{}, {"mlp_skip": 0.5}],
    "weights": [
        {},
        {"mlp_weight_norm": "weight_input"},
        {"mlp_weight_norm": "spectral"},
        {"weight_reparametrization": "sigma", "query_init_std": 0.02},
    ],
    "shaping": [{}, {"attention_shaping": "shaped"}],
    "mixer": [{}, {"mixer": "regla"}],
    "value": [{}, {"value_projection": "identity_residual"}, {"value_projection": "none"}],
    "output": [{}, {"output_projection": "identity_residual"}, {"output_projection": "none"}],
    "implementation": [
        {"attention_implementation": "blocks"},
        {"attention_implementation": "explicit"},
        {"attention_implementation": "xla"},
    ],
    "mlp": [
        {},
        {"mlp_pruned_layers": 1},
        {"mlp": "fused", "activation": "identity"},
        {"mlp": "gated"},
        {"mlp_scaling": "learned"},
    ],
    "attention": [
        {},
        {"qk_normalization": "rmsnorm", "softmax_temperature": "head_position"},
        {"attention_bias": "all"},
        {"num_kv_heads": 1},
    ],
}


def is_valid(changes: dict[str, Any]) -> bool:
    try:
        dataclasses.replace(MODEL, **changes)
    except ConfigError:
        return False
    return True


def together(chosen: dict[str, int]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for factor, place in chosen.items():
        merged |= FACTORS[factor][place]
    return merged


def every_pair() -> list[dict[str, Any]]:
    """Configs in which every two choices that may be together are together at least once."""
    generator = np.random.default_rng(0)
    left = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(FACTORS, 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }
    # What needs a third choice: a placement needs a normalization.
    helped = {"placement": {"normalization": 1}}
    configs = []
    while left:
        pair = min(left)
        chosen = dict(pair)
        for factor in dict(pair).keys() & helped.keys():
            if chosen[factor]:
                chosen = {**helped[factor], **chosen}
        if not is_valid(together(chosen)):
            left.discard(pair)
            continue
        for factor in generator.permutation([name for name in FACTORS if name not in chosen]):
            places = generator.permutation(len(FACTORS[factor]))
            options = [{**chosen, str(factor): int(place)} for place in places]
            valid = [option for option in options if is_valid(together(option))]
            new = [len(left & pairs_of(option)) for option in valid]
            chosen = valid[int(np.argmax(new))] if valid else chosen
        configs.append(together(chosen))
        left -= pairs_of(chosen)
    return configs


def pairs_of(chosen: dict[str, int]) -> set[Any]:
    in_order = [(factor, chosen[factor]) for factor in FACTORS if factor in chosen]
    return set(itertools.combinations(in_order, 2))


PAIRS = every_pair()


@pytest.mark.parametrize(
    "changes",
    [pytest.param(c, id=str(i), marks=[pytest.mark.slow] * (i > 3)) for i, c in enumerate(PAIRS)],
)
def test_no_output_depends_on_later_tokens(changes: dict[str, Any]) -> None:
    """Values, and gradients to embeddings, which of later tokens and positions are exactly zero."""
    decoder, params = random_model(0.4, **changes)
    last = 4
    earlier_BT = TOKENS_BT[:, : last + 1]
    tables = {name: table for name, table in params.items() if name.endswith("n_embedding")}

    def output(tables: dict[str, jax.Array], tokens_BT: np.ndarray) -> jax.Array:
        variables = {"params": {**params, **tables}}
        return decoder.apply(variables, tokens_BT, method=decoder.features)[0, last]

    @fast_jit
    def value_and_gradients(tokens_BT: np.ndarray) -> Any:
        value, pull = jax.vjp(lambda tables: output(tables, tokens_BT), tables)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)))[0]

    value, gradients = value_and_gradients(TOKENS_BT)
    changed_BT = np.concatenate([earlier_BT, TOKENS_BT[:, :last:-1]], axis=1)
    other, _ = value_and_gradients(changed_BT)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradients)))
    np.testing.assert_array_equal(value, other)
    seen = set(np.flatnonzero(np.any(gradients["token_embedding"] != 0, axis=1)).tolist())
    assert seen == set(earlier_BT[0].tolist())
    if "position_embedding" in gradients:
        assert not np.any(gradients["position_embedding"][last + 1 :])


def test_pairs_are_most_of_the_choices() -> None:
    seen = {(key, str(value)) for changes in PAIRS for key, value in changes.items()}
    alone = {(key, str(v)) for f in FACTORS.values() for c in f for key, v in c.items()}
    assert seen == alone
    assert 12 <= len(PAIRS) <= 60


# What a block computes


@pytest.mark.parametrize("placement", ["peri", "output"])
def test_a_branch_that_is_normalized_has_size_one(placement: str) -> None:
    decoder, params = random_model(
        0.3, normalization="rmsnorm", norm_placement=placement, norm_epsilon=1e-12
    )
    for branch in ("attention", "mlp"):
        norm = params["blocks"][f"{branch}_output_norm"]
        norm["scale"] = jnp.ones_like(norm["scale"])
    assert ("attention_norm" in params["blocks"]) == (placement == "peri")
    found = capture(decoder, params, TOKENS_BT)
    for added in (found.attention_out, found.mlp_out):
        np.testing.assert_allclose(np.mean(np.square(added), axis=-1), 1.0, rtol=1e-3)
    np.testing.assert_allclose(
        found.residual[1:], found.residual[:-1] + found.attention_out + found.mlp_out, atol=1e-5
    )


def layernorm(x: np.ndarray, params: dict, layer: int) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.float64(params["scale"][layer]) + np.float64(params["bias"][layer])


def test_post_norm_is_of_the_sum() -> None:
    _, params, found = captured(normalization="layernorm", norm_placement="post")
    norms = [params["blocks"][f"{branch}_sum_norm"] for branch in ("attention", "mlp")]
    for layer in range(2):
        middle = layernorm(found.residual[layer] + found.attention_out[layer], norms[0], layer)
        np.testing.assert_allclose(found.mlp_in[layer], middle, atol=1e-5)
        after = layernorm(middle + found.mlp_out[layer], norms[1], layer)
        np.testing.assert_allclose(found.residual[layer + 1], after, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_scales_and_skips(architecture: str) -> None:
    """What is recorded is what is added, so that the stream is the sum of it."""
    plain = {"architecture": architecture}
    skips = {"attention_skip": 0.5, **({"mlp_skip": 0.25} if architecture == "gpt2" else {})}
    scaled = {**plain, **skips, "attention_branch_scale": 0.2, "mlp_branch_scale": 0.3}
    _, _, one = captured(**plain)
    _, _, found = captured(**scaled)
    np.testing.assert_allclose(found.attention_out[0], 0.2 * one.attention_out[0], atol=1e-6)
    mlp_skip = skips.get("mlp_skip", 1.0)
    expected = mlp_skip * (0.5 * found.residual[:-1] + found.attention_out) + found.mlp_out
    np.testing.assert_allclose(found.residual[1:], expected, atol=1e-5)


def test_a_learned_scale_is_the_fixed_one() -> None:
    fixed, params = random_model(0.3, attention_branch_scale=0.2, mlp_branch_scale=0.3)
    learned, more = random_model(0.3, branch_scaling="learned")
    gains = {"attention_branch_gain": 0.2, "mlp_branch_gain": 0.3}
    assert more["blocks"].keys() - params["blocks"].keys() == gains.keys()
    blocks = {**params["blocks"], **{name: jnp.full(2, value) for name, value in gains.items()}}
    found = logits(learned, {**params, "blocks": blocks})
    np.testing.assert_array_equal(found, logits(fixed, params))


def test_a_head_gain_folds_into_the_output_matrix() -> None:
    plain, params = random_model(0.3)
    gained, more = random_model(0.3, head_gains=True)
    gain_LH = np.asarray([[1.0, 3.0], [0.5, 1.0]], np.float32)
    assert more["blocks"]["attention"]["head_gain"].shape == gain_LH.shape
    attention = params["blocks"]["attention"]
    folded = attention["out_kernel"] * gain_LH[..., None, None]

    def with_attention(**new: Any) -> dict:
        return {**params, "blocks": {**params["blocks"], "attention": {**attention, **new}}}

    np.testing.assert_allclose(
        logits(gained, with_attention(head_gain=jnp.asarray(gain_LH))),
        logits(plain, with_attention(out_kernel=folded)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_what_passes_by_the_mlp_has_gains() -> None:
    _, params, found = captured(mlp_skip_gains=True)
    gain_LD = np.float64(params["blocks"]["skip_gain"])[:, None, None]
    expected = gain_LD * (found.residual[:-1] + found.attention_out) + found.mlp_out
    np.testing.assert_allclose(found.residual[1:], expected, atol=1e-5)


def test_hidden_and_embedding_norms() -> None:
    _, params, found = captured(
        mlp_hidden_normalization="layernorm", embedding_normalization="rmsnorm"
    )
    norm, out = params["blocks"]["mlp"]["mlp_hidden_norm"], params["blocks"]["mlp"]["out_kernel"]
    for layer in range(2):
        hidden = layernorm(found.mlp_post[layer], norm, layer)
        np.testing.assert_allclose(
            found.mlp_out[layer], hidden @ np.float64(out[layer]), rtol=1e-4, atol=1e-4
        )
    normalized = found.residual[0] / np.float64(params["embedding_norm"]["scale"])
    np.testing.assert_allclose(np.mean(normalized**2, axis=-1), 1.0, rtol=1e-3)


@pytest.mark.parametrize("placement", ["pre", "post", "peri", "output"])
def test_a_placed_normalization_is_that_of_its_branch(placement: str) -> None:
    """Also its alpha; where a branch has no normalization, it has none of its parameters."""
    branch = {"attention_normalization": "dyt", "dyt_alpha_attention": 0.8}
    params = start(**branch, norm_placement=placement)
    places = {"pre": [""], "post": ["_sum"], "peri": ["", "_output"], "output": ["_output"]}
    expected = {f"blocks.attention{place}_norm.alpha" for place in places[placement]}
    alphas = {name: value for name, value in params.items() if name.endswith("alpha")}
    assert alphas.keys() == expected
    assert all(np.all(value == np.float32(0.8)) for value in alphas.values())


# Starts


def test_gpt2s_start_of_output_matrices() -> None:
    plain, depth = start(), start(residual_init="depth")
    for name, value in plain.items():
        factor = 0.5 if name.endswith("out_kernel") else 1.0  # 1 / sqrt(2 * 2 layers)
        np.testing.assert_allclose(depth[name], factor * value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "changes", [GAINED, {**SAS, "mlp_weight_norm": "spectral"}, {"query_init_std": 0.0}], ids=str
)
def test_what_models_have_in_common_starts_equal(changes: dict[str, Any]) -> None:
    plain, other = start(), start(**changes)
    common = plain.keys() & other.keys()
    assert len(common) >= 4
    kernels = {"blocks.attention.qkv_kernel", "blocks.attention.qk_kernel"}
    for name in common - kernels:
        np.testing.assert_array_equal(plain[name], other[name], err_msg=name)
    (name,) = kernels & other.keys()
    np.testing.assert_array_equal(
        other[name][:, :, 1:], plain["blocks.attention.qkv_kernel"][:, :, 1 : other[name].shape[2]]
    )
    gains = [value for key, value in other.items() if key.endswith("gain") and "mlp." not in key]
    assert all(np.all(value == 1) for value in gains)


def test_gains_at_their_start_are_the_plain_model_bit_for_bit() -> None:
    plain, params = random_model(0.3)
    gained, more = random_model(0.3, **GAINED)
    ones = jax.tree.map(jnp.ones_like, more)
    block, attention = ones["blocks"], ones["blocks"]["attention"]
    unshaped = dict.fromkeys(("identity_gain", "uniform_gain"), jnp.zeros((2, 2)))
    mine = params["blocks"]
    blocks = {
        **block,
        **mine,
        "attention": {**attention, **mine["attention"], **unshaped},
    }
    np.testing.assert_array_equal(
        logits(gained, {**params, "blocks": blocks}), logits(plain, params)
    )


def test_defaults_are_what_there_was_before() -> None:
    """Every key is at its neutral value, and the parameters are those of a plain decoder."""
    model = small_config().model
    neutral = values_before(ModelConfig)
    for field in dataclasses.fields(model):
        if field.name in neutral and field.name != "attention_implementation":
            assert getattr(model, field.name) == neutral[field.name], field.name
    assert start().keys() == {
        "token_embedding",
        "position_embedding",
        "final_norm.scale",
        "final_norm.bias",
        "blocks.attention.qkv_kernel",
        "blocks.attention.out_kernel",
        "blocks.mlp.in_kernel",
        "blocks.mlp.out_kernel",
    }


# Shaped attention


def map_of(probs: list, r: float = 1.0, s: float = 1.0, c: float = 1.0) -> np.ndarray:
    gains = {"softmax_gain": r, "identity_gain": s, "uniform_gain": c}
    module = SimpleNamespace(get_variable=lambda _, name: jnp.full(1, gains[name]))
    config = small_config(model={"attention_shaping": "shaped"}).model
    probs_BHTS = jnp.asarray(probs)[None, None]
    visible = jnp.tril(jnp.ones(probs_BHTS.shape, bool), probs_BHTS.shape[3] - probs_BHTS.shape[2])
    return np.asarray(shaped_map(module, config, probs_BHTS, visible))[0, 0]


def test_shaped_maps_by_hand() -> None:
    np.testing.assert_array_equal(map_of([[1, 0], [0.25, 0.75]]), [[1, 0], [-0.25, 1.25]])
    np.testing.assert_array_equal(map_of([[0.25, 0.75]]), [[-0.25, 1.25]])  # a later query alone
    uniform = np.tril(np.ones((5, 5), np.float32)) / np.arange(1, 6, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(map_of(uniform.tolist()), np.eye(5))
    probs = np.tril(np.random.default_rng(0).uniform(size=(5, 5)))
    probs /= probs.sum(1, keepdims=True)
    np.testing.assert_allclose(map_of(probs.tolist(), 0.5, 2.0, 0.25).sum(1), 2.25, rtol=1e-6)
    np.testing.assert_array_equal(map_of(probs.tolist(), 1.0, 0.0, 0.0), np.float32(probs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_skipless_block_starts_by_passing_every_token_on(dtype: str) -> None:
    config = small_config(model=SAS).model
    decoder = Decoder(config, VOCAB_SIZE, jnp.dtype(dtype))
    params = fast_jit(decoder.init)(jax.random.key(0), TOKENS_BT)["params"]
    found = capture(decoder, params, TOKENS_BT)
    np.testing.assert_array_equal(found.head_out, found.value)
    joined = found.attention_in.reshape(found.value.shape)
    np.testing.assert_array_equal(found.value, joined)
    np.testing.assert_array_equal(found.attention_out, found.attention_in)


def test_records_are_of_the_softmax_and_the_shaped_map_mixes() -> None:
    decoder, params, found = captured(**{**SAS, "value_projection": "identity_residual"})
    probs = found.attention_probs
    assert np.all(probs >= 0)
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    own = params["blocks"]["attention"]
    r, s, c = (
        np.float64(own[f"{name}_gain"])[:, None, :, None, None]
        for name in ("softmax", "identity", "uniform")
    )
    length = TOKENS_BT.shape[1]
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    maps = r * probs + s * np.eye(length) - c * uniform
    mixed = np.einsum("LBHTS,LBSHK->LBTHK", maps, found.value)
    np.testing.assert_allclose(found.head_out, mixed, atol=1e-5)
    entropy = -(probs * np.log(np.where(probs == 0, 1, probs))).sum(-1)
    for collections in ([BY_PRODUCTS], [BY_PRODUCTS, STATISTICS]):
        out, state = decoder.apply({"params": params}, TOKENS_BT, mutable=collections)
        measured = join_layers(state[BY_PRODUCTS])["entropy"]
        np.testing.assert_allclose(measured, entropy.mean((1, 3)), rtol=1e-4)
        np.testing.assert_allclose(out, found.logits, rtol=1e-4, atol=1e-4)
    _, state = decoder.apply({"params": params}, TOKENS_BT, mutable=[LOSSES])
    np.testing.assert_allclose(join_layers(state[LOSSES])["entropy"], entropy, rtol=1e-4, atol=1e-6)


def test_values_and_outputs_beside_the_identity() -> None:
    _, params, found = captured(
        value_projection="identity_residual", output_projection="identity_residual"
    )
    own = jax.tree.map(np.float64, params["blocks"]["attention"])
    for layer in range(2):
        x_BTD = found.attention_in[layer]
        dense = np.einsum("BTD,DHK->BTHK", x_BTD, own["qkv_kernel"][layer][:, 2])
        skip, residual = (own[f"value_{part}_gain"][layer] for part in ("skip", "residual"))
        expected = skip * x_BTD.reshape(dense.shape) + residual * dense
        np.testing.assert_allclose(found.value[layer], expected, atol=1e-5)
        mixed = found.head_out[layer]
        dense = np.einsum("BTHK,HKD->BTD", mixed, own["out_kernel"][layer])
        skip, residual = (own[f"output_{part}_gain"][layer] for part in ("skip", "residual"))
        expected = skip * mixed.reshape(dense.shape) + residual * dense
        np.testing.assert_allclose(found.attention_out[layer], expected, atol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_placement": "peri"}, "norm_placement='peri' has no effect: no branch has a norm"),
        (
            {"norm_placement": "peri", "normalization": "layernorm", "mlp": "none"}
            | {"attention_normalization": "none", "activation": "identity"},
            "norm_placement='peri' has no effect: no branch has a norm",
        ),
        (
            {"norm_placement": "post", "normalization": "dyt", "architecture": "gpt_neox"},
            "norm_placement='post' does not work with model.architecture='gpt_neox'",
        ),
        (
            {"norm_placement": "peri", "normalization": "dyt"}
            | {"attention_output_normalization": "dyt"},
            "attention_output_normalization='dyt' does not work with model.norm_placement='peri'",
        ),
        ({"mlp_branch_scale": 0.0}, "mlp_branch_scale=0.0 leaves the branch nothing to add"),
        ({"attention_skip": -1.0}, "attention_skip=-1.0 must be at least 0"),
        (
            {"mlp_scaling": "learned", "mlp_branch_scale": 0.2},
            "mlp_branch_scale=0.2 does not work with model.mlp_scaling='learned'",
        ),
        (
            {"mlp_skip": 0.5, "architecture": "gpt_neox"},
            "mlp_skip=0.5 does not work with model.architecture='gpt_neox'",
        ),
        ({"mlp_skip": 0.0, "mlp_skip_gains": True}, "mlp_skip_gains=True has no effect"),
        (
            {"mlp": "none", "activation": "identity", "mlp_weight_norm": "spectral"},
            "mlp_weight_norm='spectral' has no effect with model.mlp='none'",
        ),
        (
            {"mlp_weight_norm": "spectral", "weight_reparametrization": "sigma"},
            "mlp_weight_norm='spectral' does not work with model.weight_reparametrization='sigma'",
        ),
        (
            {"weight_reparametrization": "sigma", "attention_shaping": "shaped"},
            "weight_reparametrization='sigma' divides .* model.query_init_std=None",
        ),
        *(
            (
                {"attention_shaping": "shaped", "attention_implementation": name},
                f"attention_shaping='shaped' .* model.attention_implementation='{name}'",
            )
            for name in ("xla", "cudnn")
        ),
        (
            {"value_projection": "none", "attention_bias": "all"},
            "value_projection='none' has no bias, but model.attention_bias='all'",
        ),
        ({"query_init_std": -0.1}, "query_init_std=-0.1 must be at least 0"),
    ],
    ids=str,
)
def test_what_cannot_be_carried_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{message}"):
        small_config(model=changes)


def test_auto_is_an_implementation_that_forms_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    from nfllm.model import attention_implementation as module
    from nfllm.model.tuning import TUNINGS

    monkeypatch.setattr(module, "tuning", lambda: TUNINGS["gpu"])
    monkeypatch.setattr(module, "_on_nvidia", lambda: True)
    chosen = {
        name: module.choose_implementation(
            small_config(
                model={"attention_shaping": name, "context_length": 512, "num_heads": 2}
            ).model,
            jnp.dtype("bfloat16"),
        )
        for name in ("none", "shaped")
    }
    assert chosen == {"none": "cudnn", "shaped": "explicit"}


GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "recipes.md"
RECIPES = [line.split(" | ")[:2] for line in GUIDE.read_text().splitlines() if "=" in line][:16]


@pytest.mark.parametrize(("name", "keys"), RECIPES, ids=[name for name, _ in RECIPES])
def test_every_recipe_of_the_guide_is_a_config(name: str, keys: str) -> None:
    texts = dict(re.findall(r"`(\w+)=([\w.]+)`", keys))
    changes = {key: override_value(f"model.{key}", text) for key, text in texts.items()}
    model = dataclasses.replace(ModelConfig(), **changes)
    assert changes, name
    for key in changes:
        assert getattr(model, key) != getattr(ModelConfig(), key), key
