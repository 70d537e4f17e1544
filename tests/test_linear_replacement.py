"""The loss with lines for activations, against models that are built to compute the same."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from random_model import random_model
from training_parts import random_batch

from nfllm.analysis import LinearFit
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.analyze import analyze
from nfllm.measure.linear_replacement import replace_by_linear
from nfllm.model.decoder import Decoder
from nfllm.training.loss import count_targets, next_token_loss

SLOPE, INTERCEPT = np.array([0.7, -1.2]), np.array([0.3, 0.05])


def batches() -> list[Batch]:
    whole, masked = random_batch(0, 4), random_batch(1, 4)
    labels = masked.labels.copy()
    labels[:, 5:] = IGNORED_LABEL
    return [whole, Batch(masked.tokens, labels)]


@functools.partial(jax.jit, static_argnums=0)
def logits(model: Decoder, params: Any, tokens: np.ndarray) -> jax.Array:
    return model.apply({"params": params}, tokens)


def mean_loss(model: Decoder, params: Any) -> float:
    total = targets = 0.0
    for batch in batches():
        total += float(next_token_loss(logits(model, params, batch.tokens), batch.labels))
        targets += int(count_targets(batch.labels))
    return total / targets


def with_line(params: Any, layer: int) -> Any:
    """The same model with the line in one layer, as other parameters.

    A leaky ReLU of slope 1 is the identity; slope and intercept of the line go into the output
    matrix and bias.
    """
    mlp = dict(params["blocks"]["mlp"])
    kernel = mlp["out_kernel"]
    mlp["slope"] = mlp["slope"].at[layer].set(1.0)
    mlp["out_bias"] = mlp["out_bias"].at[layer].add(INTERCEPT[layer] * kernel[layer].sum(0))
    mlp["out_kernel"] = kernel.at[layer].multiply(SLOPE[layer])
    return {**params, "blocks": {**params["blocks"], "mlp": mlp}}


@pytest.mark.parametrize("scan_layers", [True, False])
def test_each_layer_and_all_layers(scan_layers: bool) -> None:
    model, params = random_model(
        0.2, activation="learnable_leaky_relu", mlp_bias=True, scan_layers=scan_layers
    )
    result = replace_by_linear(model, params, batches(), LinearFit(SLOPE, INTERCEPT, None))
    layers = [mean_loss(model, with_line(params, layer)) for layer in range(2)]
    both = mean_loss(model, with_line(with_line(params, 0), 1))
    assert result.loss == pytest.approx(mean_loss(model, params), rel=1e-6)
    np.testing.assert_allclose(result.layer_loss, layers, rtol=1e-6)
    assert result.all_loss == pytest.approx(both, rel=1e-6)
    # Of two layers each is a half.
    assert (result.early_loss, result.late_loss) == pytest.approx(layers, rel=1e-6)
    assert result.num_targets == 4 * 11 + 4 * 4
    assert np.ptp([result.loss, *layers, both]) > 1e-3


def test_the_best_fit_of_a_linear_activation_changes_nothing() -> None:
    model, params = random_model(0.2, activation="identity")
    fit = analyze(model, params, batches(), ["linear_fit"])["linear_fit"]
    np.testing.assert_allclose(fit.slope, [1, 1], atol=1e-6)
    result = replace_by_linear(model, params, batches(), fit)
    np.testing.assert_allclose(result.layer_loss, [result.loss] * 2, atol=1e-6)
    assert result.all_loss == pytest.approx(result.loss, abs=1e-6)


def test_bad_input() -> None:
    model, params = random_model(0.2)
    with pytest.raises(ValueError, match=r"shape \(2,\), one for each layer, got \(3,\)"):
        replace_by_linear(model, params, batches(), LinearFit(np.ones(3), np.ones(3), None))
    with pytest.raises(ValueError, match="there is no target"):
        replace_by_linear(model, params, [], LinearFit(SLOPE, INTERCEPT, None))
