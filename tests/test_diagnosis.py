"""The diagnosis of a training step: a fault planted in one array is found where it was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

from nfllm.analysis import first_bad_site
from nfllm.trainer import parts as parts_module
from nfllm.trainer.parts import put_parts
from nfllm.trainer.placement import Placement
from nfllm.training.diagnosis import describe, make_diagnosis

L, D, F = 2, 16, 64
TOKENS = 8 * 12
MODEL = {"tie_embeddings": False, "normalization": "layernorm", "activation": "gelu"}


class Case:
    """A small model of its own output head, with its diagnosis compiled once."""

    def __init__(self, **changes):
        self.config = small_config(**{"model": MODEL, **changes})
        parts = make_parts(self.config)
        self.placement = Placement(self.config, jax.devices()[:1])
        self.params = jax.device_get(jax.jit(parts.init)(jax.random.key(0)).params)
        self._diagnose = make_diagnosis(self.config, parts.model)

    def diagnose(self, plant=lambda params: None, loss_scale=1.0):
        params = jax.tree.map(np.array, self.params)
        plant(params)
        parts = put_parts(self.placement, random_batch(0))
        return self._diagnose(params, parts, 0, loss_scale, self.placement.micro_batches)


@pytest.fixture(scope="module")
def float32():
    return Case()


def _set(*path, index, value):
    def plant(params):
        array = params
        for name in path:
            array = array[name]
        array[index] = value

    return plant


NAN, INF = np.nan, np.inf
QKV = ("blocks", "attention", "qkv_kernel")  # [L, D, 3, H, K]


@pytest.mark.parametrize(
    ("plant", "site", "layer", "counts", "size"),
    [
        (_set(*QKV, index=(1, 3, 0, 1, 2), value=NAN), "query", 1, (TOKENS, 0, 0), TOKENS * D),
        (_set(*QKV, index=(0, 3, 1, 1, 2), value=NAN), "key", 0, (TOKENS, 0, 0), TOKENS * D),
        # One unit of one head's values: every output of the attention mixes it in.
        (
            _set(*QKV, index=(1, 3, 2, 1, 2), value=NAN),
            *("attention_out", 1, (TOKENS * D, 0, 0), TOKENS * D),
        ),
        (
            _set("blocks", "mlp", "in_kernel", index=(1, 0, 5), value=NAN),
            *("mlp_pre", 1, (TOKENS, 0, 0), TOKENS * F),
        ),
        (
            _set("blocks", "mlp", "out_kernel", index=(0, 5, 4), value=NAN),
            *("mlp_out", 0, (TOKENS, 0, 0), TOKENS * D),
        ),
        (
            _set("position_embedding", index=(7, 2), value=-INF),
            *("residual", 0, (0, 0, 8), TOKENS * D),
        ),
        (
            _set("head_embedding", index=(9, 0), value=NAN),
            *("logits", None, (TOKENS, 0, 0), TOKENS * VOCAB_SIZE),
        ),
    ],
)
def test_a_planted_value_is_found_where_it_first_acts(float32, plant, site, layer, counts, size):
    found = first_bad_site(float32.diagnose(plant))
    assert found == (site, layer, *counts, size)


def test_all_sites_are_looked_at_and_a_sound_step_has_none(float32):
    record = float32.diagnose()
    assert first_bad_site(record) is None
    sizes = {site: int(np.max(counts.size)) for site, counts in record.items()}
    visible = 8 * 2 * 12 * 13 // 2
    block = sum(leaf.size for leaf in jax.tree.leaves(float32.params["blocks"]))
    everything = sum(leaf.size for leaf in jax.tree.leaves(float32.params))
    assert sizes == {
        "residual": TOKENS * D,
        "query": TOKENS * D,
        "key": TOKENS * D,
        "attention_logits": visible,
        "attention_probs": 8 * 2 * 12 * 12,
        "attention_out": TOKENS * D,
        "mlp_pre": TOKENS * F,
        "mlp_post": TOKENS * F,
        "mlp_out": TOKENS * D,
        "logits": TOKENS * VOCAB_SIZE,
        "loss": 1,
        "gradients": block // L,
        "other_gradients": everything - block,
    }


def _overflowing_gradient(scale, out, *layers):
    """MLPs that give 0, one unit of which has weights that only a backward pass sees."""

    def plant(params):
        block = params["blocks"]
        for layer in layers:
            block["mlp"]["in_kernel"][layer] = 0
            block["mlp"]["out_kernel"][layer, 5] = out * np.sign(np.arange(D) - 7.5)
            block["mlp_norm"]["scale"][layer] = scale

    return plant


@pytest.mark.parametrize(("layers", "first"), [((0,), 0), ((1,), 1), ((0, 1), 1)])
def test_a_gradient_that_overflows_is_found_in_backward_order(float32, layers, first):
    record = float32.diagnose(_overflowing_gradient(1e6, 3e38, *layers))
    found = first_bad_site(record)
    assert (found.site, found.layer) == ("gradients", first)
    assert 0 < found.nan + found.positive_inf + found.negative_inf <= D
    if layers == (1,):
        assert record["gradients"].total().tolist()[0] == 0
    assert describe(record).startswith(f"first in gradients of layer {first}: ")


def test_a_norm_that_overflows_alone_is_told_from_its_entries(float32):
    record = float32.diagnose(_overflowing_gradient(1.0, 1e25, 1))
    assert first_bad_site(record) is None
    largest_L = record["gradients"].max_abs
    assert 1e20 < largest_L[1] < 1e30
    assert largest_L[0] < 10
    assert f"is {largest_L[1]:.3g}, in layer 1" in describe(record)


@pytest.mark.slow
def test_devices_and_parts_do_not_change_what_is_found():
    """Dropout included: each sequence keeps its mask, and its weight."""
    model = {**MODEL, "embedding_dropout": 0.3, "residual_dropout": 0.2}
    records = []
    for devices, micro_batches in ((1, 1), (4, 2)):
        case = Case(model=model, training={"gradient_accumulation": micro_batches})
        case.placement = Placement(case.config, jax.devices()[:devices])
        record = case.diagnose(_set(*QKV, index=(1, 3, 0, 1, 2), value=1e3))
        records.append({site: counts for site, counts in record.items() if site != "loss"})
    jax.tree.map(lambda one, four: np.testing.assert_allclose(four, one, rtol=2e-4), *records)


@pytest.mark.parametrize(
    ("limit", "parts"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case != (24, 4)))
        for case in ((4096, 2), (48, 2), (24, 4), (1, 8))
    ],
)
def test_a_large_batch_is_looked_at_in_parts(limit, parts, monkeypatch):
    """In no larger parts than fit; what is found is that of the whole."""
    case = Case(training={"gradient_accumulation": 2})
    plant = _set(*QKV, index=(1, 3, 0, 1, 2), value=1e3)
    expected = case.diagnose(plant)
    monkeypatch.setattr(parts_module, "_PART_TOKENS", limit)
    assert put_parts(case.placement, random_batch(0)).tokens.shape == (parts, 8 // parts, 12)
    found = case.diagnose(plant)
    del expected["loss"], found["loss"]  # one entry for each part
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4), found, expected)


@pytest.mark.slow
def test_float16_overflows_are_those_of_the_step_and_its_scale():
    case = Case(training={"dtype": "float16"})
    found = first_bad_site(case.diagnose(_set(*QKV, index=(0, 3, slice(2)), value=300)))
    assert (found.site, found.layer) == ("attention_logits", 0)
    assert found.positive_inf + found.negative_inf > 0
    assert found.nan == 0
    assert first_bad_site(case.diagnose(loss_scale=2.0**10)) is None
    scaled = first_bad_site(case.diagnose(loss_scale=2.0**40))
    assert (scaled.site, scaled.layer) == ("gradients", L - 1)


def test_gradients_are_those_of_the_loss(float32):
    """Against differences of the loss that the model gives without any of this."""
    from nfllm.training.loss import next_token_loss

    record = float32.diagnose()
    tokens_BT = jnp.asarray(random_batch(0).tokens)
    model = make_parts(float32.config).model

    def mean_loss(params):
        logits_BTV = model.apply({"params": params}, tokens_BT)
        return next_token_loss(logits_BTV, tokens_BT) / (8 * 11)

    gradients = jax.jit(jax.grad(mean_loss))(float32.params)
    for layer in range(L):
        largest = max(np.abs(leaf[layer]).max() for leaf in jax.tree.leaves(gradients["blocks"]))
        assert record["gradients"].max_abs[layer] == pytest.approx(largest, rel=1e-5)
