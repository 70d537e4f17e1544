"""ReGLA (arXiv 2502.01578): its gate, against sums over all pairs, what it lacks, and a run."""

import dataclasses
import html
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_jit import fast_jit
from random_model import random_model
from test_block_options import start
from test_generation import by_whole_passes
from tiny import make_corpus, tiny_config
from training_parts import VOCAB_SIZE, small_config

import nfllm
from nfllm.config import ConfigError
from nfllm.convert.fold import fold_params
from nfllm.measure.generation import generate_ids
from nfllm.model.cache import empty_cache
from nfllm.model.capture import Captured
from nfllm.model.patch import Patch
from nfllm.model.regla import gated_recurrence, largest_entry, refined_gate
from nfllm.private_cost.shape import DecoderShape
from nfllm.report import write_report
from nfllm.report.checkpoint_sections import importance_sections, step_sections
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.loop import fit
from nfllm.training.diagnosis import describe
from nfllm.training.optimizer import make_optimizer
from nfllm.training.telemetry import make_probe

pytestmark = pytest.mark.slow

LENGTH = 37  # more than two chunks, and no whole number of them
REGLA = {"mixer": "regla", "normalization": "layernorm", "context_length": LENGTH}
TOKENS = np.random.default_rng(0).permutation(VOCAB_SIZE)[:LENGTH].astype(np.int32)[None]


def test_the_gate_by_hand() -> None:
    """Values and derivatives of the definition, worked out on paper."""
    g, r = jnp.asarray([0.5, 0.9, 0.1, 0.3, 0.3]), jnp.asarray([0.5, 0.2, 0.9, 0.0, 1.0])
    expected = [0.5, 0.846, 0.172, 0.3**2, 1 - 0.7**2]
    np.testing.assert_allclose(refined_gate(g, r), expected, rtol=1e-6)
    slopes = jax.vmap(jax.grad(refined_gate))(g[:3], r[:3])
    np.testing.assert_allclose(slopes, [1.0, 1.48, 1.64], rtol=1e-6)


def test_the_largest_entry_by_hand() -> None:
    """Of equal entries the first has the derivative."""
    x = jnp.asarray([[1.0, 3.0, -2.0], [-5.0, -5.0, -7.0]])
    value, pull = jax.vjp(largest_entry, x)
    np.testing.assert_array_equal(value, [[3.0], [-5.0]])
    np.testing.assert_array_equal(pull(jnp.asarray([[2.0], [1.0]]))[0], [[0, 2, 0], [1, 0, 0]])


@pytest.mark.parametrize("length", [1, 5, 16, LENGTH])
def test_chunks_are_the_recurrence(length: int) -> None:
    """Also where gates close altogether, and with their gradients."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, length, 2, 4))
    log_decay = -rng.exponential(3.0, size=(2, length, 2, 3)) * rng.choice([0, 1, 20], size=(3,))
    v = v[..., :3]
    state, expected = np.zeros((2, 2, 3, 4)), []
    for t in range(length):
        state = np.exp(log_decay[:, t])[..., None] * state
        state = state + v[:, t, :, :, None] * k[:, t, :, None]
        expected.append(np.einsum("bhvk,bhk->bhv", state, q[:, t]))
    inputs = tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v, log_decay))

    @fast_jit
    def value_and_gradients(inputs: Any) -> Any:
        found, pull = jax.vjp(gated_recurrence, *inputs)
        return found, pull(jnp.ones_like(found))

    found, gradients = value_and_gradients(inputs)
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-4)
    assert all(np.all(np.isfinite(x)) for x in gradients)


def over_all_pairs(params: Any, found: Captured, layer: int) -> np.ndarray:
    """What a layer mixes, [B, T, H, K] in float64: no maximum, no factor, no chunk, no state."""
    own = jax.tree.map(lambda x: np.float64(x[layer]), params["blocks"]["attention"]["regla"])
    x, q, k, v = (
        np.float64(getattr(found, name)[layer])
        for name in ("attention_in", "query", "key", "value")
    )
    k, v = (np.repeat(y, q.shape[2] // k.shape[2], axis=2) for y in (k, v))

    def gate(name: str) -> np.ndarray:
        z = np.einsum("btd,dhk->bthk", x, own[f"{name}_kernel"]) + own[f"{name}_bias"]
        return 1 / (1 + np.exp(-z))

    g, r = gate("forget"), gate("refine")
    log_gate = np.log((1 - r) * g**2 + r * (1 - (1 - g) ** 2))
    total = np.cumsum(log_gate, axis=1)
    is_earlier = np.tri(x.shape[1], dtype=bool)[..., None, None]
    kept = np.exp(np.where(is_earlier, total[:, :, None] - total[:, None], -np.inf))
    mixed = np.einsum("bthk,bshk,btshv,bshv->bthv", np.exp(q), np.exp(k), kept, v, optimize=True)
    return mixed / np.sqrt(np.mean(mixed**2, -1, keepdims=True)) * own["norm"]["scale"]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_kv_heads": 1}, {"architecture": "llama"}, {"qk_normalization": "rmsnorm"}],
    ids=str,
)
def test_it_is_the_sum_over_all_earlier_tokens(options: dict[str, Any]) -> None:
    """The norm takes the maxima and the factor of the feature maps out again, up to its epsilon."""
    model, params = random_model(0.4, **REGLA, norm_epsilon=1e-20, **options)
    found = nfllm.capture(model, params, TOKENS)
    for layer in range(2):
        expected = over_all_pairs(params, found, layer)
        np.testing.assert_allclose(found.head_out[layer], expected, rtol=1e-3, atol=1e-4)


def test_the_factor_of_the_query_map() -> None:
    """1 / (e sqrt(K (e² - 1))) is 0.0181927009 for K = 64: what a lone token gives shows it."""
    sizes = {"num_heads": 1, "embed_dim": 64, "num_layers": 1, "mlp_dim": 4}
    # A norm that divides by 1e6, values of 1, and queries and keys of 0.
    model, params = random_model(0.0, **REGLA | sizes, norm_epsilon=1e12)
    block = params["blocks"]
    kernel = block["attention"]["qkv_kernel"].at[:, :, 2].set(jnp.eye(64)[None, :, None])
    block["attention"]["qkv_kernel"] = kernel
    block["attention"]["regla"]["norm"]["scale"] += 1e6
    block["attention_norm"]["bias"] += 1.0
    found = nfllm.capture(model, params, TOKENS[:, :1])
    np.testing.assert_allclose(found.head_out, 64 * 0.0181927009, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_token_sees_a_later_one_and_sequences_stay_apart(dtype: str) -> None:
    model, params = random_model(0.4, **REGLA)
    model = model.clone(dtype=jnp.dtype(dtype))
    table = params["token_embedding"]
    last = 20

    @fast_jit
    def value_and_gradient(tokens_BT: np.ndarray) -> Any:
        def output(table: jax.Array) -> jax.Array:
            variables = {"params": {**params, "token_embedding": table}}
            return model.apply(variables, tokens_BT, method=model.features)[0, last]

        value, pull = jax.vjp(output, table)
        return value, pull(jnp.cos(jnp.arange(16.0)).astype(value.dtype))[0]

    value, gradient = value_and_gradient(TOKENS)
    changed = np.concatenate([TOKENS[:, : last + 1], TOKENS[:, :last:-1]], axis=1)
    np.testing.assert_array_equal(value, value_and_gradient(changed)[0])
    seen = set(np.flatnonzero(np.any(gradient != 0, axis=1)).tolist())
    assert seen == set(TOKENS[0, : last + 1].tolist())

    apply = fast_jit(lambda tokens: model.apply({"params": params}, tokens))
    batch = np.stack([TOKENS[0], TOKENS[0, ::-1], np.roll(TOKENS[0], 3)])
    order = [2, 0, 1]
    np.testing.assert_array_equal(apply(batch)[np.asarray(order)], apply(batch[order]))


def test_what_it_has_in_common_with_attention_starts_equal() -> None:
    plain, other = start(), start(mixer="regla", weight_reparametrization="none")
    own = "blocks.attention.regla."
    gates = {f"{own}{name}_{kind}" for name in ("forget", "refine") for kind in ("kernel", "bias")}
    assert other.keys() - plain.keys() == {*gates, f"{own}norm.scale"}
    for name, value in plain.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    assert not np.array_equal(other[f"{own}forget_kernel"], other[f"{own}refine_kernel"])
    assert not np.any(other[f"{own}forget_bias"])


def test_its_matrices_are_reparametrized_and_orthogonalized_as_all_others() -> None:
    sigma = start(mixer="regla", weight_reparametrization="sigma")
    assert sigma["blocks.attention.regla.forget_direction"].shape == (2, 1, 16)
    config = small_config(model={"mixer": "regla"}, optimizer={"variant": "muon", "clip_norm": 0.0})
    optimizer = make_optimizer(config.optimizer, lambda _: jnp.float32(0.01))
    _, params = random_model(0.1, mixer="regla")
    grads = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size).reshape(x.shape) ** 1.5), params)
    updates, _ = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(grads, params)
    kernel = updates["blocks"]["attention"]["regla"]["forget_kernel"].reshape(2, 16, 16)
    values = np.linalg.svd(kernel, compute_uv=False)
    assert (values.max(-1) / values.min(-1)).max() < 2.5


# What it lacks


def test_captured_and_probed_without_maps() -> None:
    model, params = random_model(0.4, **REGLA)
    found = nfllm.capture(model, params, TOKENS)
    assert found.attention_probs.shape == found.attention_logits.shape == (0, 1, 2, LENGTH, LENGTH)
    assert found.head_out.shape == (2, 1, LENGTH, 2, 8)
    fields = make_probe(model)(params, jnp.asarray(TOKENS))
    assert not {"entropy_nats", "logit_max_abs"} & fields.keys()
    assert "attention_logits" not in fields["nonfinite"]
    off = nfllm.interventions.replace_head(model.config, 0, 1)
    assert not np.any(nfllm.capture(model, params, TOKENS, patches=[off]).head_out[0, :, :, 1])
    with pytest.raises(ValueError, match=r"no layer has a site 'attention_probs': model.mixer is"):
        nfllm.capture(model, params, TOKENS, patches=[Patch("attention_probs", 0.0)])


def test_measured_as_far_as_it_goes() -> None:
    model, params = random_model(0.4, **REGLA)
    found = nfllm.analyze(model, params, [TOKENS])
    assert {"mlp_pre_rms", "ledger"} <= found.keys()
    assert not {"head_entropy", "sequence_entropy"} & found.keys()
    assert "attention_probs" not in found["ledger"]
    for metric in ("head_entropy", "sink_score", "logit_spread"):
        message = (
            rf"the metric '{metric}' needs the site 'attention_(probs|logits)'.* model.mixer='re"
        )
        with pytest.raises(ValueError, match=message):
            nfllm.analyze(model, params, [TOKENS], [metric])


def test_text_is_that_of_whole_passes() -> None:
    model, params = random_model(0.4, **REGLA | {"context_length": 12})
    written = generate_ids(model, params, [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]], max_tokens=15)
    assert [tokens.tolist() for tokens in written] == by_whole_passes(model, params, 15, 1.0)
    with pytest.raises(ConfigError, match=r"model.mixer='regla' keeps no keys and values"):
        empty_cache(model.config, 1)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *(("model", "attention_implementation", name) for name in ("explicit", "blocks", "cudnn")),
        ("model", "attention_shaping", "shaped"),
        ("model", "softmax_temperature", "head"),
        ("model", "attention_dropout", 0.1),
        ("objective", "entropy_weight", 1e-5),
        ("optimizer", "qk_clip", 100.0),
        ("telemetry", "entropy_every_step", True),
    ],
)
def test_what_needs_a_softmax_is_refused(section: str, key: str, value: Any) -> None:
    config = small_config(**{section: {key: value}})
    message = rf"{section}.{key}={value!r} does not work with model.mixer='regla'"
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, model=dataclasses.replace(config.model, mixer="regla"))


def test_what_knows_attention_alone_refuses_it_by_its_key() -> None:
    model, params = random_model(0.1, mixer="regla", normalization="frozen_layernorm")
    with pytest.raises(ValueError, match=r"cannot be folded with model.mixer='regla'"):
        fold_params(model.config, params)
    with pytest.raises(ConfigError, match=r"model.mixer='regla' is not counted"):
        DecoderShape.from_config(model.config, VOCAB_SIZE)
    assert describe(nfllm.analysis.ledger({"gradients": np.ones((2, 3))})).endswith("in layer 0")


@pytest.mark.parametrize("normalization", ["none", "layernorm"])
def test_a_model_with_it_is_normalised(normalization: str) -> None:
    model = small_config(model={"mixer": "regla", "normalization": normalization}).model
    assert model.statistics == "normalised"


# A run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` goes to its end at once, `resumed` from the checkpoint at its middle."""
    folder = tmp_path_factory.mktemp("regla")
    changes = {"model__mixer": "regla", "telemetry__every": 4, "checkpoint__every": 4}
    changes |= {"model__normalization": "layernorm", "optimizer__learning_rate": 0.01}
    changes |= {"training__recipe": "helu"}
    corpus = make_corpus(folder / "corpus")
    config = tiny_config(corpus, folder / "data", checkpoint__keep=3, **changes)
    fit(config, folder / "whole")
    shutil.copytree(folder / "whole", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "step_8")
    fit(config, folder / "resumed")
    return folder


def test_a_resumed_run_is_the_whole_one_bit_for_bit(runs: Path) -> None:
    whole, resumed = (nfllm.load_run(runs / name) for name in ("whole", "resumed"))
    events = [line["event"] for line in resumed.metrics.rows["event"]]
    assert "resumed" in events
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    _, losses = whole.metrics.series("train", "loss_nats")
    assert losses[-1] < losses[0] - 0.2


def test_its_lines_and_its_report_say_that_there_is_no_entropy(runs: Path) -> None:
    metrics = read_metrics(runs / "whole")
    changed = "recipe helu changed: model.activation='relu' (published: 'helu'), "
    assert f"regla attention; {changed}" in metrics.rows["event"][0]["message"]
    assert all("entropy_nats" not in line for line in metrics.rows["telemetry"])
    page = write_report([runs / "whole"], runs / "report").read_text()
    assert "There is no attention entropy to show. Not defined for regla+LN+R" in page
    assert "normalised" in page
    assert changed in html.unescape(page)
    importance = nfllm.head_importance(run := nfllm.load_run(runs / "whole"), run_batches(run))
    assert np.all(np.isfinite(importance.rise_LH.estimate))
    for replacement in ("uniform", "mean_pattern"):
        with pytest.raises(ValueError, match=f"replacement='{replacement}' .* model.mixer='regla'"):
            nfllm.head_importance(run, run_batches(run), replacement)


def run_batches(run: nfllm.Run) -> Any:
    return run.validation_batches(4, max_windows=4)


def test_what_loads_checkpoints_says_so_too(runs: Path) -> None:
    for sections in (importance_sections, step_sections):
        (section,) = sections([runs / "whole"], ["mine"])
        assert "attention entropy is not defined, since" in section.blocks[0].content
