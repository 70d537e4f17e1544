"""The attention entropy that the training step computes on the side."""

import jax
import numpy as np
import pytest
from lowered import lowered_step
from random_model import random_model
from training_parts import make_parts, random_batch, small_config

from nfllm.analysis import attention_entropy, attention_entropy_from_logits
from nfllm.data.batches import Batch
from nfllm.model.capture import capture
from nfllm.model.softmax import entropy_by_product
from nfllm.trainer.placement import Placement

BATCH = random_batch(0)


def _after_one_step(devices=1, **sections):
    """State and metrics of one step from random parameters, whose attention is not uniform."""
    config = small_config(**sections)
    parts = make_parts(config)
    parallel = Placement(config, jax.devices()[:devices])
    _, params = random_model(0.3, **sections.get("model", {}))
    state = parallel.init(lambda key: parts.init(key).replace(params=params), jax.random.key(0))
    return parallel.train_step(parts.train_step)(state, parallel.put_train(BATCH))


@pytest.fixture(scope="module")
def expected():
    decoder, params = random_model(0.3)
    probs_LBHTS = capture(decoder, params, BATCH.tokens).attention_probs
    entropy_LH = attention_entropy(probs_LBHTS).mean((1, 3))
    assert np.ptp(entropy_LH) > 0.01
    return entropy_LH


@pytest.mark.usefixtures("blocks_of_five_queries")
@pytest.mark.parametrize(
    ("devices", "sections"),
    [
        (1, {"model": {"scan_layers": True, "remat": True}, "training": {"loss_tile_rows": 24}}),
        pytest.param(
            2, {"model": {"attention_implementation": "explicit"}}, marks=pytest.mark.slow
        ),
        (2, {"training": {"gradient_accumulation": 2}}),
        pytest.param(
            2,
            {"parallel": {"strategy": "fsdp"}, "training": {"gradient_accumulation": 2}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_it_is_that_of_the_captured_probabilities(devices, sections, expected):
    _, metrics = _after_one_step(devices, telemetry={"entropy_every_step": True}, **sections)
    np.testing.assert_allclose(metrics.entropy_LH, expected, atol=2e-6)


@pytest.mark.exact
@pytest.mark.usefixtures("blocks_of_five_queries")
def test_the_training_is_the_same_bit_for_bit(expected):
    plain, without = _after_one_step()
    observed, metrics = _after_one_step(telemetry={"entropy_every_step": True})
    assert without.entropy_LH is None
    np.testing.assert_allclose(metrics.entropy_LH, expected, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, plain, observed)


def test_it_is_in_the_program_only_when_asked_for():
    off, on = (
        lowered_step(small_config(telemetry={"entropy_every_step": on})) for on in (False, True)
    )
    # One logarithm in the loss, another in each of two layers.
    assert (off.count("stablehlo.log "), on.count("stablehlo.log ")) == (1, 3)
    assert "tensor<2x2xf32>" not in off
    assert "tensor<2x2xf32>" in on


def test_no_map_of_queries_and_keys_is_kept_for_it():
    def temporary_bytes(on):
        sections = {
            "model": {"context_length": 128},
            "training": {"gradient_accumulation": 1},
            "telemetry": {"entropy_every_step": on},
        }
        parts = make_parts(small_config(**sections))
        state = jax.eval_shape(parts.init, jax.random.key(0))
        tokens = random_batch(0, length=128).tokens[None]
        program = jax.jit(parts.train_step).lower(state, Batch(tokens, tokens)).compile()
        return program.memory_analysis().temp_size_in_bytes

    one_map = 4 * 8 * 2 * 128 * 128
    assert temporary_bytes(True) < temporary_bytes(False) + one_map / 4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e5])
def test_masked_and_infinite_logits_count_for_nothing(scale):
    logits = scale * np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
    logits[..., 4, 3] = -np.inf  # as float16 gives
    logits = np.where(np.tril(np.ones((9, 9), bool)), logits, np.finfo(np.float32).min)
    entropy = entropy_by_product(jax.numpy.asarray(logits), jax.nn.softmax(logits))
    np.testing.assert_allclose(entropy, attention_entropy_from_logits(logits), atol=2e-6)
