"""Patched models, against models whose weights compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_model
from training_parts import random_batch, small_config

from nfllm import Patch, capture, head_importance, interventions, logit_lens
from nfllm.analysis.numerics import LAYER_SITES
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.evaluation import row_losses, row_targets
from nfllm.measure.head_importance import _mean_site
from nfllm.model.capture import Captured
from nfllm.model.intermediates import SITES
from nfllm.model.patch import patch_variables
from nfllm.run import Run

TOKENS_BT = random_batch(0, sequences=3).tokens
OTHER_BT = random_batch(1, sequences=3).tokens
MODELS = [
    {"attention_bias": "all", "mlp_bias": True, "scan_layers": True},
    {"architecture": "gpt_neox", "normalization": "layernorm", "scan_layers": False},
    {"attention_implementation": "xla", "remat": True},
]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model_and_params(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return random_model(0.3, **request.param)


def changed(params: Any, path: str, change: Callable[[jax.Array], jax.Array]) -> Any:
    """The parameters with one array of the blocks changed, where there is such."""
    module, name = path.split("/")
    own = params["blocks"][module]
    if name not in own:
        return params
    blocks = {**params["blocks"], module: {**own, name: change(own[name])}}
    return {**params, "blocks": blocks}


def without_head(params: Any, layer: int, head: int) -> Any:
    return changed(params, "attention/out_kernel", lambda x: x.at[layer, head].set(0))


def without_mlp(params: Any, layer: int) -> Any:
    for name in ("out_kernel", "out_bias"):
        params = changed(params, f"mlp/{name}", lambda x: x.at[layer].set(0))
    return params


def with_uniform_head(params: Any, layer: int, head: int) -> Any:
    """Its queries are 0, and so are its logits."""
    params = changed(params, "attention/qkv_kernel", lambda x: x.at[layer, :, 0, head].set(0))
    return changed(params, "attention/qkv_bias", lambda x: x.at[layer, 0, head].set(0))


def check_logits(model_and_params: tuple[Any, Any], patches: list[Patch], params: Any) -> None:
    model, own = model_and_params
    found = capture(model, own, TOKENS_BT, patches=patches).logits
    np.testing.assert_allclose(found, capture(model, params, TOKENS_BT).logits, atol=2e-5)
    assert np.abs(found - capture(model, own, TOKENS_BT).logits).max() > 1e-2


def test_what_takes_the_place_by_hand() -> None:
    uniform = interventions.uniform_attention(3)
    np.testing.assert_allclose(
        uniform[0, 0, 0], [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6
    )
    site_LBT = jnp.asarray([[[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]])
    np.testing.assert_allclose(interventions.mean_over_positions(site_LBT), [[[4.0]]])
    probs_LBHTS = jnp.asarray([[[[[1.0, 0.0]]], [[[0.5, 0.5]]]]])
    np.testing.assert_allclose(interventions.mean_pattern(probs_LBHTS), [[[[[0.75, 0.25]]]]])


@pytest.mark.slow
def test_zero_ablation(model_and_params: tuple[Any, Any]) -> None:
    config, params = model_and_params[0].config, model_and_params[1]
    head, mlp = interventions.replace_head(config, 1, 0), interventions.replace_mlp(config, 0)
    check_logits(model_and_params, [head], without_head(params, 1, 0))
    check_logits(model_and_params, [mlp], without_mlp(params, 0))
    nothing = without_mlp(without_head(without_head(params, 1, 0), 1, 1), 1)
    nothing = changed(nothing, "attention/out_bias", lambda x: x.at[1].set(0))
    check_logits(model_and_params, interventions.remove_layer(config, 1), nothing)


@pytest.mark.slow
def test_uniform_attention(model_and_params: tuple[Any, Any]) -> None:
    config, params = model_and_params[0].config, model_and_params[1]
    uniform = interventions.uniform_attention(TOKENS_BT.shape[1])
    patch = interventions.freeze_attention(config, 1, 1, uniform)
    check_logits(model_and_params, [patch], with_uniform_head(params, 1, 1))
    captured = capture(*model_and_params, TOKENS_BT, patches=patch)
    np.testing.assert_allclose(captured.attention_probs[1, :, 1, 3, :5], [[0.25] * 4 + [0]] * 3)


@pytest.mark.slow
def test_mean_and_resample_ablation(model_and_params: tuple[Any, Any]) -> None:
    """What a site's field of `Captured` then holds is the mean, or what the other text gave."""
    model, params = model_and_params
    other = capture(model, params, OTHER_BT)
    mean = interventions.mean_over_positions(other.head_out)
    np.testing.assert_allclose(mean[0, 0, 0], np.asarray(other.head_out[0]).mean((0, 1)), rtol=1e-5)
    pattern = interventions.mean_pattern(other.attention_probs)
    np.testing.assert_allclose(pattern.sum(-1), np.ones(pattern.shape[:-1]), rtol=1e-6)
    patches = [
        interventions.replace_head(model.config, 0, 1, mean),
        interventions.replace_head(model.config, 1, 0, other.head_out),
        interventions.freeze_attention(model.config, 1, 1, pattern),
    ]
    found = capture(model, params, TOKENS_BT, patches=patches)
    plain = capture(model, params, TOKENS_BT)
    np.testing.assert_array_equal(found.head_out[0, :, :, 0], plain.head_out[0, :, :, 0])
    expected = np.broadcast_to(mean[0, 0, 0, 1], found.head_out[0, :, :, 1].shape)
    np.testing.assert_array_equal(found.head_out[0, :, :, 1], expected)
    np.testing.assert_array_equal(found.head_out[1, :, :, 0], other.head_out[1, :, :, 0])
    for probs in found.attention_probs[1, :, 1]:
        np.testing.assert_array_equal(probs, pattern[1, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("model_and_params", MODELS[:2], ids=str, indirect=True)
@pytest.mark.parametrize("site", SITES)
def test_every_site_can_be_patched(model_and_params: tuple[Any, Any], site: str) -> None:
    """The last layer's is taken from other text; at `residual` that gives the other logits."""
    model, params = model_and_params
    plain, other = (capture(model, params, tokens) for tokens in (TOKENS_BT, OTHER_BT))
    values = getattr(other, site)
    last = (jnp.arange(len(values)) == len(values) - 1).reshape(-1, *[1] * (values.ndim - 1))
    found = capture(model, params, TOKENS_BT, patches=[Patch(site, values, last)])
    np.testing.assert_array_equal(getattr(found, site)[-1], values[-1])
    np.testing.assert_allclose(getattr(found, site)[0], getattr(plain, site)[0], atol=1e-6)
    assert np.abs(found.logits - plain.logits).max() > 1e-3
    if site == "residual":
        np.testing.assert_allclose(found.logits, other.logits, atol=1e-5)
    same = capture(model, params, TOKENS_BT, patches=[Patch(site, getattr(plain, site))])
    np.testing.assert_allclose(same.logits, plain.logits, atol=1e-5)


def test_the_sites_are_the_same_everywhere() -> None:
    assert (*SITES, "logits", "saturation") == Captured._fields
    assert tuple(site for site in SITES if site in LAYER_SITES) == LAYER_SITES


@pytest.mark.slow
def test_gradients_pass_what_is_not_replaced(model_and_params: tuple[Any, Any]) -> None:
    model, params = model_and_params

    @jax.jit
    @jax.grad
    def gradients(params: Any, patch: Patch) -> jax.Array:
        return jnp.sum(capture(model, params, TOKENS_BT, patches=[patch]).logits ** 2)

    patch = interventions.replace_head(model.config, 1, 0)
    found = gradients(params, patch)["blocks"]["attention"]["out_kernel"]
    assert np.all(found[1, 0] == 0)
    assert np.all(np.abs(found[jnp.array([0, 0, 1]), jnp.array([0, 1, 1])]).max((1, 2)) > 1e-3)


@pytest.mark.slow
def test_logit_lens(model_and_params: tuple[Any, Any]) -> None:
    """Before the last block: the logits of the model without that block."""
    model, params = model_and_params
    captured = capture(model, params, TOKENS_BT)
    found = logit_lens(model, params, captured.residual)
    np.testing.assert_allclose(found[-1], captured.logits, atol=1e-5)
    without = interventions.remove_layer(model.config, 1)
    expected = capture(model, params, TOKENS_BT, patches=without).logits
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.mark.parametrize("shape", ["LBTD", "LTD", "BTD", "TD"])
def test_logit_lens_with_a_deviation_of_the_first_position(shape: str) -> None:
    model, params = random_model(
        0.3,
        normalization="none",
        final_normalization="frozen_layernorm",
        frozen_first_position=True,
    )
    closed = {"norm_gate": np.zeros(1, np.float32), "sigma": np.array([[9.0, 2.0]], np.float32)}
    params["final_norm"] = {**params["final_norm"], **closed}
    tokens_BT = TOKENS_BT if "B" in shape else TOKENS_BT[:1]
    captured = capture(model, params, tokens_BT)
    residual = captured.residual if shape.startswith("L") else captured.residual[-1:]
    residual = residual if "B" in shape else residual[:, 0]
    found = logit_lens(model, params, residual if shape.startswith("L") else residual[0])
    last = found[-1] if shape.startswith("L") else found
    np.testing.assert_allclose(
        last, captured.logits if "B" in shape else captured.logits[0], atol=1e-5
    )
    with pytest.raises(ValueError, match=r"of shape \[3, 5\] do not fit the model, whose width"):
        logit_lens(model, params, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="have no positions"):
        logit_lens(model, params, captured.residual[-1, 0, 0])


def test_the_later_patch_of_a_place_counts() -> None:
    config = small_config(model={"num_layers": 3}).model
    first = [interventions.replace_mlp(config, layer, 1.0) for layer in (0, 1)]
    second = interventions.replace_mlp(config, 1, 2.0)
    found = patch_variables([*first, second], {"mlp_out": (3, 1, 12, 16)}, config)
    patch = found["patches"]["blocks"]["mlp_out"]
    assert patch["where"].ravel().tolist() == [True, True, False]
    assert patch["value"].ravel()[:2].tolist() == [1.0, 2.0]


def run_of(model: Any, params: Any) -> Run:
    return Run(Path("run"), 0, model, params, None, None)  # type: ignore[arg-type]


def mean_loss(model: Any, params: Any, patches: list[Patch], batches: list[Batch]) -> float:
    nats = targets = 0.0
    for tokens, labels in batches:
        logits = capture(model, params, tokens, patches=patches).logits
        nats += float(row_losses(logits, labels).sum())
        targets += int(row_targets(labels).sum())
    return nats / targets


@pytest.mark.slow
@pytest.mark.parametrize("replacement", ["zero", "mean", "uniform", "mean_pattern"])
def test_head_importance(replacement: str) -> None:
    """Head by head what the patches give; the mean is over both batches without the filler row."""
    model, params = random_model(0.3, attention_bias="all")
    params = without_head(params, 1, 0)
    first, second = (random_batch(seed, sequences=4).tokens for seed in (0, 1))
    labels = second.copy()
    labels[1, 5:], labels[3] = IGNORED_LABEL, IGNORED_LABEL
    batches = [Batch(first, first), Batch(second, labels)]
    found = head_importance(run_of(model, params), batches, replacement)
    together = capture(model, params, np.concatenate([first, second[:3]]))
    config = model.config
    for layer in range(2):
        for head in range(2):
            patch = {
                "zero": lambda *of: interventions.replace_head(config, *of),
                "mean": lambda *of: interventions.replace_head(
                    config, *of, interventions.mean_over_positions(together.head_out)
                ),
                "uniform": lambda *of: interventions.freeze_attention(
                    config, *of, interventions.uniform_attention(12)
                ),
                "mean_pattern": lambda *of: interventions.freeze_attention(
                    config, *of, interventions.mean_pattern(together.attention_probs)
                ),
            }[replacement](layer, head)
            rise = mean_loss(model, params, [patch], batches) - found.loss_nats
            assert found.rise_LH.estimate[layer, head] == pytest.approx(rise, abs=2e-6)
    assert found.loss_nats == pytest.approx(mean_loss(model, params, [], batches), rel=1e-6)
    assert found.num_targets == 6 * 11 + 4
    low, estimate, high = found.rise_LH.low, found.rise_LH.estimate, found.rise_LH.high
    np.testing.assert_allclose([low[1, 0], high[1, 0]], [0, 0], atol=1e-6)
    others = np.array([True, True, False, True])
    assert np.all((low < estimate).ravel()[others] & (estimate < high).ravel()[others])


@pytest.mark.slow
def test_bad_input() -> None:
    model, params = random_model(0.2)
    config = model.config
    with pytest.raises(ValueError, match="there is no layer 2; the model has 2, 0 to 1"):
        interventions.replace_mlp(config, 2)
    with pytest.raises(ValueError, match="there is no head -1 in layer 0; a layer has 2, 0 to 1"):
        interventions.replace_head(config, 0, -1)
    with pytest.raises(ValueError, match=r"layer=0\.5 must be a whole number, an int"):
        interventions.replace_head(config, 0.5, 0)
    with pytest.raises(ValueError, match=r"head=0\.5 must be a whole number, an int"):
        interventions.replace_head(config, 0, 0.5)
    for patch, message in [
        (Patch("mlp_owt", 0.0), "unknown site 'mlp_owt'; did you mean 'mlp_out'"),
        (Patch("logits", 0.0), "unknown site 'logits'"),
        (
            Patch("mlp_out", jnp.zeros((2, 3, 12, 15))),
            r"the value of mlp_out has shape \(2, 3, 12, 15\), .* fit \(2, 3, 12, 16\): give it",
        ),
        (Patch("mlp_out", 0.0, jnp.zeros(2, bool)), r"the where of mlp_out has shape \(2,\)"),
        (Patch("mlp_out", 0.0, jnp.full((2, 1, 1, 1), 0.5)), "where of mlp_out: expected booleans"),
    ]:
        with pytest.raises(ValueError, match=message):
            capture(model, params, TOKENS_BT, patches=[patch])
    run = run_of(model, params)
    with pytest.raises(ValueError, match="unknown replacement 'men'; did you mean 'mean'"):
        head_importance(run, [TOKENS_BT], "men")
    with pytest.raises(ValueError, match="needs two sequences with a target, but batches has 1"):
        head_importance(run, [TOKENS_BT[:1]], "zero")
    with pytest.raises(ValueError, match=r"'mean_pattern' needs sequences of one length, .* 5 and"):
        head_importance(run, [TOKENS_BT, TOKENS_BT[:, :5]], "mean_pattern")


@pytest.mark.slow
def test_the_mean_output_is_over_positions_of_any_number() -> None:
    model, params = random_model(0.3)
    batches = [TOKENS_BT[:2, :3], TOKENS_BT[:2, :9]]
    found = _mean_site(model, params, batches, "mean")
    outputs = [np.asarray(capture(model, params, x).head_out, np.float64) for x in batches]
    expected = sum(x.sum((1, 2)) for x in outputs) / (2 * 3 + 2 * 9)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "with_mlp"),
    [
        ({"num_layers": 3, "mlp_pruned_layers": 1}, 2),
        ({"num_layers": 2, "mlp": "none", "activation": "identity", "mlp_dim": None}, 0),
    ],
)
def test_layers_without_an_mlp(options: dict[str, Any], with_mlp: int) -> None:
    """Removed layers are the identity; there is no MLP to replace in some."""
    model, params = random_model(0.3, **options)
    for layer in range(options["num_layers"]):
        patches = interventions.remove_layer(model.config, layer)
        assert len(patches) == 1 + (layer < with_mlp)
        residual_LBTD = capture(model, params, TOKENS_BT, patches=patches).residual
        np.testing.assert_array_equal(residual_LBTD[layer], residual_LBTD[layer + 1])
    with pytest.raises(ValueError, match=rf"layer {with_mlp} has no MLP: .* leaves {with_mlp} of"):
        interventions.replace_mlp(model.config, with_mlp)
