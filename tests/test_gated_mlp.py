"""The gated MLP: values by hand and by torch, its sites, its weights, its start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_jit import fast_jit
from random_model import random_model
from test_block_options import start
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

import nfllm
from nfllm.analysis import LinearFit
from nfllm.measure.linear_replacement import replace_by_linear
from nfllm.report.runs import notation
from nfllm.training.telemetry import make_probe

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 9)).astype(np.int32)


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "identity"])
def test_it_is_torchs(activation: str) -> None:
    torch = pytest.importorskip("torch")
    model, params = random_model(0.3, mlp="gated", mlp_bias=True, activation=activation)
    found = nfllm.capture(model, params, TOKENS)
    act = {"identity": lambda x: x}.get(activation) or getattr(torch.nn.functional, activation)
    for layer in range(2):
        own = {k: torch.tensor(np.float64(x[layer])) for k, x in params["blocks"]["mlp"].items()}
        x = torch.tensor(np.float64(found.mlp_in[layer]))
        pre = x @ own["gate_kernel"] + own["gate_bias"]
        post = act(pre) * (x @ own["in_kernel"] + own["in_bias"])
        out = post @ own["out_kernel"] + own["out_bias"]
        for ours, theirs in ((found.mlp_pre, pre), (found.mlp_post, post), (found.mlp_out, out)):
            np.testing.assert_allclose(ours[layer], theirs.numpy(), rtol=1e-5, atol=1e-5)
        assert np.ptp(out.numpy()) > 1


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"mlp_weight_norm": method}
            for method in ("weight_input", "weight_output", "hypersphere", "spectral")
        ),
        {"weight_reparametrization": "sigma"},
    ],
    ids=str,
)
def test_weights_that_are_normalized_are_all_three(changes: dict[str, Any]) -> None:
    model, params = random_model(0.4, mlp="gated", **changes)
    own = params["blocks"]["mlp"]

    def logits(mlp: Any) -> jax.Array:
        blocks = {**params["blocks"], "mlp": mlp}
        return fast_jit(model.apply)({"params": {**params, "blocks": blocks}}, TOKENS)

    expected = logits(own)
    for name in ("gate_kernel", "in_kernel", "out_kernel"):
        np.testing.assert_allclose(
            logits({**own, name: 8 * own[name]}), expected, rtol=1e-4, atol=1e-5, err_msg=name
        )
        assert np.abs(logits({**own, name: own[name] + 1}) - expected).max() > 1e-3


@pytest.mark.exact
def test_equal_seeds_start_equal_but_for_the_gate() -> None:
    plain, gated = start(), start(mlp="gated")
    assert gated.keys() - plain.keys() == {"blocks.mlp.gate_kernel"}
    for name, value in plain.items():
        np.testing.assert_array_equal(gated[name], value, err_msg=name)
    gate = gated["blocks.mlp.gate_kernel"]
    assert not np.any(gate == gated["blocks.mlp.in_kernel"])
    assert np.std(gate) == pytest.approx(np.std(plain["blocks.mlp.in_kernel"]), rel=0.1)


def test_statistics_are_those_of_what_is_captured() -> None:
    model, params = random_model(0.3, mlp="gated", mlp_bias=True, mlp_pruned_layers=1)
    found = make_probe(model)(params, jnp.asarray(TOKENS))
    captured = nfllm.capture(model, params, TOKENS)
    assert captured.mlp_post.shape == (1, 2, 9, 64)
    pre, post = (np.float64(x[0]).reshape(18, -1) for x in (captured.mlp_pre, captured.mlp_post))
    np.testing.assert_allclose(found["mlp_pre_rms"], [np.sqrt(np.mean(pre**2))], rtol=1e-5)
    for name, x in (("pre", pre), ("post", post)):
        spectrum = np.linalg.eigvalsh(np.cov(x.T))
        ratio = spectrum.sum() ** 2 / (spectrum**2).sum()
        np.testing.assert_allclose(found[f"mlp_{name}_participation"], [ratio], rtol=1e-3)


def test_replacing_the_activation_by_a_line_is_refused_by_key() -> None:
    model, params = random_model(0.3, mlp="gated")
    fit = LinearFit(*np.zeros((len(LinearFit._fields), 2), np.float32))
    with pytest.raises(ValueError, match=r"with model\.mlp='gated', mlp_post is the product"):
        replace_by_linear(model, params, [], fit)


@pytest.mark.parametrize(
    ("activation", "name"),
    [("silu", "SM+silu (gated)"), ("relu", "SM+R (gated)"), ("identity", "SM+gated")],
)
def test_its_name_in_reports(activation: str, name: str) -> None:
    config = small_config(model={"mlp": "gated", "activation": activation})
    assert notation(config) == name


def test_it_trains() -> None:
    """Every matrix has a gradient, decays, and Muon takes it."""
    for variant in ("adamw", "muon"):
        config = small_config(
            model={"mlp": "gated", "activation": "silu", "attention_implementation": "explicit"},
            optimizer={"variant": variant, "learning_rate": 0.01},
        )
        parts = make_parts(config)
        state, step = parts.init(jax.random.key(0)), fast_jit(parts.train_step)
        batch = jax.tree.map(lambda x: x[None], random_batch(0))
        before = state.params["blocks"]["mlp"]
        losses = []
        for _ in range(4):
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss_nats))
        assert losses[-1] < losses[0] - 0.02
        for name, kernel in state.params["blocks"]["mlp"].items():
            assert np.all(np.any(kernel != before[name], axis=(1, 2))), name
