import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import make_parts, random_batch, small_config

from nfllm.analysis import attention_entropy
from nfllm.data.batches import Batch
from nfllm.model import attention_statistics
from nfllm.model.capture import capture
from nfllm.model.intermediates import BY_PRODUCTS, STATISTICS
from nfllm.trainer.placement import Placement
from nfllm.training.telemetry import make_probe


@pytest.fixture(params=[32, 5])
def fewest_queries(request, monkeypatch):
    """Maps of all twelve queries, and of five, five and two."""
    monkeypatch.setattr(attention_statistics, "_FEWEST_QUERIES", request.param)


def _probed(model_changes, params_of=lambda params: params, num_devices=1):
    config = small_config(model=model_changes, parallel={"strategy": "fsdp"})
    parts = make_parts(config)
    parallel = Placement(config, jax.devices()[:num_devices])
    params = params_of(parallel.init(parts.init, jax.random.key(0)).params)
    tokens_BT = parallel.put_probe(random_batch(0).tokens)
    assert len(tokens_BT.sharding.device_set) == num_devices
    return make_probe(parts.model)(params, tokens_BT), capture(
        parts.model, jax.device_get(params), np.asarray(tokens_BT)
    )


@pytest.mark.usefixtures("fewest_queries")
@pytest.mark.parametrize(
    ("changes", "num_devices"), [({}, 1), ({"scan_layers": True, "architecture": "gpt_neox"}, 4)]
)
def test_the_probe_gives_what_whole_captures_give(changes, num_devices):
    probed, captured = _probed({"init_std": 0.1, **changes}, num_devices=num_devices)
    entropy_LH = attention_entropy(captured.attention_probs).mean((1, 3))
    np.testing.assert_allclose(probed["entropy_nats"], entropy_LH, atol=2e-6)
    visible_TS = np.tril(np.ones((12, 12), bool))
    logits = np.where(visible_TS, np.abs(captured.attention_logits), 0)
    np.testing.assert_allclose(probed["logit_max_abs"], logits.max((1, 3, 4)), rtol=1e-6)
    for field, tensor in [("mlp_pre_rms", "mlp_pre"), ("residual_rms", "residual")]:
        whole = np.asarray(getattr(captured, tensor))
        np.testing.assert_allclose(probed[field], np.sqrt((whole**2).mean((1, 2, 3))), rtol=1e-5)
    for site in ("mlp_pre", "mlp_post"):
        vectors_LNF = np.asarray(getattr(captured, site), np.float64).reshape(2, 96, -1)
        spectra_LF = [np.linalg.eigvalsh(np.cov(x, rowvar=False)) for x in vectors_LNF]
        expected = [e.sum() ** 2 / (e**2).sum() for e in spectra_LF]
        np.testing.assert_allclose(probed[f"{site}_participation"], expected, rtol=1e-5)
    residual_max = np.abs(captured.residual).max((1, 2, 3))
    np.testing.assert_allclose(probed["residual_max_abs"], residual_max, rtol=1e-6)
    assert probed["residual_rms"].shape == (3,)
    assert all(not counts.any() for counts in probed["nonfinite"].values())
    assert "negative_slopes" not in probed


@pytest.mark.parametrize(
    "sharing",
    [
        pytest.param("layer", marks=pytest.mark.slow),
        "model",
        pytest.param("untied_global", marks=pytest.mark.slow),
    ],
)
def test_slopes_are_told_per_layer_whatever_their_sharing(sharing):
    changes = {"activation": "learnable_leaky_relu", "slope_sharing": sharing}

    def set_slopes(params):
        if sharing == "model":
            return {**params, "slope": jnp.float32(0.3)}
        params["blocks"]["mlp"]["slope"] = jnp.asarray([0.1, 0.2])
        return params

    probed, _ = _probed({**changes, "negative_slope": 0.5}, set_slopes)
    expected = [0.3, 0.3] if sharing == "model" else [0.1, 0.2]
    np.testing.assert_allclose(probed["negative_slopes"], expected, rtol=1e-6)


@pytest.mark.usefixtures("fewest_queries")
def test_values_that_are_not_finite_are_counted_by_site_and_layer():
    def poison(params):
        kernel = params["blocks"]["mlp"]["in_kernel"]
        params["blocks"]["mlp"]["in_kernel"] = kernel.at[1, 0, 5].set(jnp.nan)
        return params

    probed, _ = _probed({}, poison)
    # One column of the second layer's hidden units, for 8 sequences of 12 tokens.
    np.testing.assert_array_equal(probed["nonfinite"]["mlp_pre"], [0, 96])
    for site in ("attention_logits", "attention_out"):
        np.testing.assert_array_equal(probed["nonfinite"][site], [0, 0])
    np.testing.assert_array_equal(probed["nonfinite"]["mlp_out"], [0, 8 * 12 * 16])
    # Everything of the last residual stream is gone, nothing of the layers before.
    np.testing.assert_array_equal(probed["nonfinite"]["residual"], [0, 0, 8 * 12 * 16])


def test_without_telemetry_nothing_of_it_is_computed():
    """The lowered training step has no entropy, whose `log` it lacks, and no [F, F] covariance."""
    parts = make_parts(small_config())
    tokens_BT = jnp.asarray(random_batch(0).tokens)
    params = jax.eval_shape(parts.init, jax.random.key(0)).params

    def loss(params, mutable):
        logits = parts.model.apply({"params": params}, tokens_BT, mutable=mutable)
        return jnp.sum(logits[0] if mutable else logits)

    def lowered(mutable):
        return jax.jit(jax.grad(lambda params: loss(params, mutable))).lower(params).as_text()

    assert "stablehlo.log " not in lowered(False)
    assert "tensor<64x64xf32>" not in lowered(False)

    def collected(params):
        mutable = [STATISTICS, BY_PRODUCTS]
        return parts.model.apply({"params": params}, tokens_BT, mutable=mutable)[1]

    forward = jax.jit(collected).lower(params).as_text()
    assert "stablehlo.log " in forward
    assert "tensor<64x64xf32>" in forward


@pytest.mark.usefixtures("fewest_queries")
def test_logits_that_are_not_finite_are_counted_where_a_query_sees_the_key():
    def poison(params):
        kernel = params["blocks"]["attention"]["qkv_kernel"]
        params["blocks"]["attention"]["qkv_kernel"] = kernel.at[1, 0, 0, 1].set(jnp.nan)
        return params

    probed, captured = _probed({}, poison)
    np.testing.assert_array_equal(probed["nonfinite"]["attention_logits"], [0, 8 * 12 * 13 // 2])
    visible_TS = np.tril(np.ones((12, 12), bool))
    counted = (~np.isfinite(captured.attention_logits) & visible_TS).sum((1, 2, 3, 4))
    np.testing.assert_array_equal(counted, probed["nonfinite"]["attention_logits"])
    assert np.isnan(probed["entropy_nats"][1, 1])
    assert np.isfinite(probed["entropy_nats"][1, 0])
    assert np.isnan(probed["logit_max_abs"][1, 1])


@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_a_probe_takes_no_more_memory_than_a_training_step(architecture):
    """Of sixteen sequences against one: the maps of all would be the largest tensors there are."""
    config = small_config(
        model={"context_length": 2048, "architecture": architecture},
        training={"batch_size": 1, "gradient_accumulation": 1},
    )
    parts = make_parts(config)
    state = jax.eval_shape(parts.init, jax.random.key(0))
    batch_MBT = jax.ShapeDtypeStruct((1, 1, 2048), jnp.int32)
    step = jax.jit(parts.train_step).lower(state, Batch(batch_MBT, batch_MBT)).compile()
    probed = jax.ShapeDtypeStruct((16, 2048), jnp.int32)
    probe = jax.jit(
        lambda params, tokens_BT: parts.model.apply(
            {"params": params},
            tokens_BT,
            mutable=[STATISTICS, BY_PRODUCTS],
            method=parts.model.features,
        )
    )
    found = probe.lower(state.params, probed).compile().memory_analysis().temp_size_in_bytes
    assert found <= step.memory_analysis().temp_size_in_bytes
