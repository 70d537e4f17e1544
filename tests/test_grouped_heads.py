"""Heads of queries that share keys and values: against a model in which each has its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_jit import fast_jit
from jax._src.cudnn import fused_attention_stablehlo as cudnn_lowering
from lowered import lowered_step
from random_model import random_model
from test_block_options import start
from test_generation import by_whole_passes
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

import nfllm
from nfllm.analysis import attention_entropy, attention_entropy_from_qk
from nfllm.config import ConfigError
from nfllm.measure.generation import generate_ids
from nfllm.model.cache import empty_cache
from nfllm.model.patch import Patch
from nfllm.training.loss import next_token_loss
from nfllm.training.muon import muon
from nfllm.training.qk_clip import clip_qk
from nfllm.training.telemetry import make_probe

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 9)).astype(np.int32)
SIZES = {"num_heads": 4, "embed_dim": 32}
GROUPED = {**SIZES, "num_kv_heads": 2, "attention_bias": "all"}


def with_own_keys(params: Any, num_heads: int) -> Any:
    """The parameters of the model in which every head has the keys and values that it reads."""
    attention = dict(params["blocks"]["attention"])

    def joined(q: str, kv: str) -> jax.Array:
        kv_heads = attention.pop(kv)
        kv_heads = jnp.repeat(kv_heads, num_heads // kv_heads.shape[-2], axis=-2)
        return jnp.concatenate([attention.pop(q)[..., None, :, :], kv_heads], axis=-3)

    attention["qkv_kernel"] = joined("q_kernel", "kv_kernel")
    attention["qkv_bias"] = joined("q_bias", "kv_bias")
    return {**params, "blocks": {**params["blocks"], "attention": attention}}


def loss_of(model: Any) -> Any:
    return lambda params: next_token_loss(model.apply({"params": params}, TOKENS), TOKENS)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("implementation", ["explicit", "blocks", "xla"])
def test_loss_and_gradients_are_those_of_copied_keys(
    kv_heads: int, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nfllm.model.attention_implementation._FEWEST_QUERIES", 4)
    monkeypatch.setattr("nfllm.model.attention_implementation._MOST_BLOCKS", 3)
    options = {
        "architecture": "gpt_neox",
        "rotary_fraction": 1.0,
        "attention_implementation": implementation,
    }
    grouped, params = random_model(0.3, **GROUPED | {"num_kv_heads": kv_heads}, **options)
    options["attention_implementation"] = "explicit"
    plain, _ = random_model(0.3, **SIZES, attention_bias="all", **options)
    found = fast_jit(jax.value_and_grad(loss_of(grouped)))(params)
    # Through the copies, whose gradients add up.
    expected = fast_jit(
        jax.value_and_grad(lambda params: loss_of(plain)(with_own_keys(params, 4)))
    )(params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
        found,
        expected,
    )


def test_as_many_as_heads_is_the_plain_model_bit_for_bit() -> None:
    for name, value in (plain := start(**SIZES)).items():
        np.testing.assert_array_equal(start_equal()[name], value, err_msg=name)
    assert start_equal().keys() == plain.keys()
    assert lowered_step(small_config(model=SIZES)) == lowered_step(
        small_config(model={**SIZES, "num_kv_heads": 4})
    )


def start_equal() -> dict[str, np.ndarray]:
    return start(**SIZES, num_kv_heads=4)


@pytest.mark.exact
def test_equal_seeds_start_equal_in_all_but_keys_and_values() -> None:
    plain, grouped = start(**SIZES), start(**SIZES, num_kv_heads=2)
    attention = "blocks.attention."
    assert grouped.keys() - plain.keys() == {f"{attention}q_kernel", f"{attention}kv_kernel"}
    qkv = plain.pop(f"{attention}qkv_kernel")
    for name, value in plain.items():
        np.testing.assert_array_equal(grouped[name], value, err_msg=name)
    np.testing.assert_array_equal(grouped[f"{attention}q_kernel"], qkv[:, :, 0])
    np.testing.assert_array_equal(grouped[f"{attention}kv_kernel"], qkv[:, :, 1:, ::2])


def test_what_is_captured_patched_and_probed() -> None:
    model, params = random_model(0.4, **GROUPED)
    found = nfllm.capture(model, params, TOKENS)
    assert found.query.shape == found.head_out.shape == (2, 2, 9, 4, 8)
    assert found.key.shape == found.value.shape == (2, 2, 9, 2, 8)
    own = jnp.repeat(found.key, 2, axis=3)
    logits = np.einsum("LBTHK,LBSHK->LBHTS", np.float64(found.query), own) / np.sqrt(8)
    seen = np.tril(np.ones((9, 9), bool))
    np.testing.assert_allclose(
        np.where(seen, found.attention_logits, 0), np.where(seen, logits, 0), rtol=1e-4, atol=1e-5
    )
    entropy = attention_entropy(found.attention_probs)
    from_qk = attention_entropy_from_qk(
        jnp.swapaxes(found.query, 2, 3), jnp.swapaxes(found.key, 2, 3), causal=True
    )
    np.testing.assert_allclose(from_qk, entropy, atol=1e-5)
    probed = make_probe(model)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(probed["entropy_nats"], entropy.mean((1, 3)), atol=1e-5)
    values = jnp.zeros_like(found.value).at[..., 1, :].set(1.0)
    patched = nfllm.capture(model, params, TOKENS, patches=[Patch("value", values)])
    np.testing.assert_array_equal(patched.value, values)
    np.testing.assert_allclose(patched.head_out[..., :2, :], 0.0)
    np.testing.assert_allclose(patched.head_out[..., 2:, :], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"architecture": "gpt_neox", "softmax_temperature": "head_position"}], ids=str
)
def test_text_is_that_of_whole_passes(options: dict[str, Any]) -> None:
    model, params = random_model(0.4, **GROUPED, **options)
    keys = empty_cache(model.config, 3)["blocks"]["attention"]["keys"]
    assert keys.shape == (2, 3, 12, 2, 8)
    from test_generation import PROMPTS

    written = generate_ids(model, params, PROMPTS, max_tokens=8, temperature=1.0)
    assert [tokens.tolist() for tokens in written] == by_whole_passes(model, params, 8, 1.0)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_qk_clip_scales_queries_alone_and_logits_end_at_the_limit(bias: str) -> None:
    model, params = random_model(0.5, **GROUPED | {"attention_bias": bias})

    def largest(params: Any) -> np.ndarray:
        return np.asarray(nfllm.capture(model, params, TOKENS).attention_logits).max((1, 3, 4))

    before = largest(params)
    limit = float(np.median(before[0]))  # two heads of layer 0 exceed it
    clipped = clip_qk(params, jnp.asarray(before), limit, model.config)
    np.testing.assert_allclose(largest(clipped)[0], np.minimum(before[0], limit), rtol=1e-5)
    old, new = params["blocks"]["attention"], clipped["blocks"]["attention"]
    np.testing.assert_array_equal(new["kv_kernel"], old["kv_kernel"])
    same = before[0] <= limit
    assert 0 < same.sum() < 4
    np.testing.assert_array_equal(new["q_kernel"][0][:, same], old["q_kernel"][0][:, same])


def test_qk_clip_of_blocks_without_values() -> None:
    """Whose `qk_kernel` holds query and key, as `qkv_kernel` does."""
    model, params = random_model(0.5, value_projection="none", output_projection="none")
    clipped = clip_qk(params, jnp.full((2, 2), 4.0), 1.0, model.config)
    found, old = (x["blocks"]["attention"]["qk_kernel"] for x in (clipped, params))
    np.testing.assert_allclose(found, 0.5 * old, rtol=1e-6)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(
    ("options", "axes"),
    [
        (GROUPED, {"q_kernel": "LDHK", "kv_kernel": "LDCHK"}),
        ({**SIZES, "value_projection": "none"}, {"qk_kernel": "LDCHK"}),
    ],
    ids=["grouped", "no_values"],
)
def test_muon_takes_each_of_query_key_and_value_for_a_matrix(
    options: dict[str, Any], axes: dict[str, str], per_head: bool
) -> None:
    _, params = random_model(0.1, **options)
    config = small_config(optimizer={"variant": "muon", "muon_per_head": per_head}).optimizer
    optimizer = muon(config, lambda _: jnp.float32(0.01), lambda params: False, optax.sgd(0.01))
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    update = fast_jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)
    for name, letters in axes.items():
        x = np.asarray(update["blocks"]["attention"][name])
        rest = letters.replace("D", "")
        x = np.einsum(f"{letters}->{rest.replace('K', '')}DK", x)
        if not per_head:
            x = np.moveaxis(x, -3, -2).reshape(*x.shape[:-3], x.shape[-2], -1)
        values = np.linalg.svd(x, compute_uv=False)
        assert (values.max(-1) / values.min(-1)).max() < 2.2, name


def test_sigma_reparam_of_each_matrix() -> None:
    """A model whose matrices are divided by their largest singular values computes the same."""
    model, params = random_model(
        0.3, **GROUPED, weight_reparametrization="sigma", query_init_std=0.1
    )
    attention = params["blocks"]["attention"]
    assert attention["q_gain"].shape == (2, 1)
    assert attention["kv_gain"].shape == (2, 2)
    expected = nfllm.capture(model, params, TOKENS).logits
    for name in ("q_kernel", "kv_kernel"):
        larger = {**attention, name: 8 * attention[name]}
        blocks = {**params["blocks"], "attention": larger}
        found = nfllm.capture(model, {**params, "blocks": blocks}, TOKENS).logits
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cudnn_keeps_no_map_and_copies_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU that is not here: the fused call takes the keys of two heads."""
    monkeypatch.setattr(cudnn_lowering, "check_cudnn_version", lambda: 91_000)
    model = {**SIZES, "num_kv_heads": 2, "attention_implementation": "cudnn", "scan_layers": True}
    program = lowered_step(small_config(model=model, training={"dtype": "bfloat16"}), "cuda")
    call = next(line for line in program.splitlines() if "@__cudnn$fmhaSoftmax(" in line)
    assert "x2x8xbf16" in call
    assert "x12x12x" not in program


def test_a_step_trains_every_part() -> None:
    config = small_config(
        model=GROUPED, optimizer={"qk_clip": 100.0}, telemetry={"entropy_every_step": True}
    )
    parts = make_parts(config)
    state = parts.init(jax.random.key(0))
    batch = jax.tree.map(lambda x: x[None], random_batch(0))
    new, metrics = fast_jit(parts.train_step)(state, batch)
    assert metrics.entropy_LH.shape == (2, 4)
    for name in ("q_kernel", "kv_kernel", "kv_bias", "q_bias"):
        before, after = (s.params["blocks"]["attention"][name] for s in (state, new))
        assert np.any(before != after), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, r"num_kv_heads=3 does not divide model.num_heads=4; choose a div"),
        ({"num_kv_heads": 8}, r"num_kv_heads=8 does not divide model.num_heads=4"),
        ({"num_kv_heads": 0}, r"model.num_kv_heads=0 must be at least 1"),
        (
            {"num_kv_heads": 2, "attention_bias": "qk"},
            r"attention_bias='qk' does not work with model.num_kv_heads=2 below model.num_heads=4",
        ),
        *(
            (
                {"num_kv_heads": 2, "value_projection": kind},
                rf"value_projection='{kind}' does not work with model.num_kv_heads=2",
            )
            for kind in ("none", "identity_residual")
        ),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(model={**SIZES, **changes})
