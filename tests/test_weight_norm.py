"""Matrices used normalized: against torch and by hand, their measured vectors, and checkpoints."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_jit import fast_jit
from flax import linen as nn
from random_model import random_model
from trainer import TIMEOUT_SECONDS
from training_parts import make_parts, random_batch, small_config

from nfllm.config import CheckpointConfig
from nfllm.data.batches import Batch
from nfllm.model import capture
from nfllm.model.decoder import Decoder
from nfllm.model.intermediates import UPDATES
from nfllm.model.parameters import Kind, kind_of
from nfllm.model.power_iteration import leading_direction, power_iteration
from nfllm.model.weight_norm import reparametrized
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.placement import Placement

pytestmark = pytest.mark.slow

HAND = np.asarray([[3.0, 4.0], [0.0, 2.0]], np.float32)  # [in, out]
METHODS = ["weight_input", "weight_output", "hypersphere", "spectral", "sigma"]


class Linear(nn.Module):
    """One matrix, used by a method."""

    method: str
    start: tuple

    @nn.compact
    def __call__(self) -> jax.Array:
        kernel = self.param("in_kernel", lambda _: jnp.asarray(self.start, jnp.float32))
        return reparametrized(self, "in_kernel", kernel, self.method)


def used(kernel: np.ndarray, method: str, **params: Any) -> tuple[np.ndarray, dict]:
    """The matrix that is used, and the module's parameters; `params` replace some of them."""
    module = Linear(method, tuple(map(tuple, kernel.tolist())))
    own = {**module.init(jax.random.key(0)).get("params"), **params}
    return np.asarray(module.apply({"params": own})), own


def test_by_hand() -> None:
    _, by_input = used(HAND, "weight_input")
    np.testing.assert_allclose(by_input["in_gain"], [5, 2], rtol=1e-6)
    _, by_output = used(HAND, "weight_output")
    np.testing.assert_allclose(by_output["in_gain"], [3, 4.4721359550], rtol=1e-6)
    sphere, _ = used(HAND, "hypersphere")
    np.testing.assert_allclose(sphere.T, [[1, 0], [0.8944271910, 0.4472135955]], rtol=1e-6)
    spectral, own = used(HAND, "spectral")
    assert own.keys() == {"in_kernel", "in_direction"}
    np.testing.assert_allclose(spectral, HAND / 5.2631149315, rtol=1e-6)
    first, _ = used(HAND, "spectral", in_direction=jnp.asarray([1.0, 0.0]))
    np.testing.assert_allclose(first, HAND / 5.2497618994, rtol=1e-6)
    diagonal = np.diag([3.0, 1.0])
    sigma, own = used(diagonal, "sigma", in_gain=jnp.float32(2.0))
    np.testing.assert_allclose(sigma, 2 * np.diag([1, 1 / 3]), rtol=1e-6)
    assert own["in_gain"].shape == ()


def test_a_column_of_zeros_has_the_gradient_of_torchs_normalize() -> None:
    """Of a unit that was pruned, say. torch: F.normalize(W, dim=0), W = [[3, 0], [4, 0]]."""
    module, x_I = Linear("hypersphere", ((3.0, 0.0), (4.0, 0.0))), jnp.asarray([2.0, 4.0])
    params = module.init(jax.random.key(0))
    gradient = jax.grad(lambda p: (x_I @ module.apply(p)).sum())(params)["params"]["in_kernel"]
    np.testing.assert_allclose(gradient, [[-0.128, 2e12], [0.096, 4e12]], rtol=1e-5)


@pytest.mark.parametrize("method", ["weight_input", "weight_output"])
def test_weight_norm_starts_where_nothing_changes(method: str) -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 7))
    found, _ = used(kernel, method)
    np.testing.assert_allclose(found, kernel, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_raw_matrix_does_not_matter(method: str) -> None:
    kernel = np.random.default_rng(0).normal(size=(5, 7))
    found, own = used(kernel, method)
    larger, _ = used(kernel, method, in_kernel=7 * own["in_kernel"])
    np.testing.assert_allclose(larger, found, rtol=1e-5, atol=1e-6)


def gradients(kernel: np.ndarray, method: str, bar: np.ndarray, **params: Any) -> dict:
    module = Linear(method, tuple(map(tuple, kernel.tolist())))
    own = {**module.init(jax.random.key(0)).get("params"), **params}
    return jax.grad(lambda own: jnp.sum(bar * module.apply({"params": own})))(own)


@pytest.mark.parametrize(("method", "dim"), [("weight_input", 0), ("weight_output", 1)])
def test_weight_norm_is_torchs(method: str, dim: int) -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(1)
    kernel, bar = generator.normal(size=(2, 5, 7)).astype(np.float32)
    gain = generator.normal(size=kernel.shape[dim]).astype(np.float32)
    layer = torch.nn.Linear(5, 7, bias=False)
    layer.weight.data = torch.tensor(kernel)  # [in, out], as NerVE's Conv1D
    layer = torch.nn.utils.parametrizations.weight_norm(layer, dim=dim)
    stored = layer.parametrizations.weight
    with torch.no_grad():
        stored.original0.copy_(torch.tensor(gain).reshape(stored.original0.shape))
    (layer.weight * torch.tensor(bar)).sum().backward()
    found, _ = used(kernel, method, in_gain=jnp.asarray(gain))
    np.testing.assert_allclose(found, layer.weight.detach().numpy(), rtol=1e-5, atol=1e-5)
    ours = gradients(kernel, method, bar, in_gain=jnp.asarray(gain))
    for name, theirs in (("in_gain", stored.original0), ("in_kernel", stored.original1)):
        expected = theirs.grad.numpy().reshape(ours[name].shape)
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spectral_norm_is_torchs_for_several_steps() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(2)
    kernel, bar = generator.normal(size=(2, 5, 7)).astype(np.float32)
    layer = torch.nn.Linear(5, 7, bias=False)
    layer.weight.data = torch.tensor(kernel)
    layer = torch.nn.utils.spectral_norm(layer)  # of [in, out], its u is one of inputs
    direction = layer.weight_u.numpy().copy()
    module = Linear("spectral", tuple(map(tuple, kernel.tolist())))
    for _ in range(4):
        own = {"in_kernel": jnp.asarray(kernel), "in_direction": jnp.asarray(direction)}
        found, state = module.apply({"params": own}, mutable=[UPDATES])
        layer.weight_orig.grad = None
        layer(torch.zeros(1, 7))  # a step of power iteration
        (layer.weight * torch.tensor(bar)).sum().backward()
        np.testing.assert_allclose(found, layer.weight.detach().numpy(), rtol=1e-5, atol=1e-5)
        ours = gradients(kernel, "spectral", bar, in_direction=jnp.asarray(direction))
        np.testing.assert_allclose(
            ours["in_kernel"], layer.weight_orig.grad.numpy(), rtol=1e-4, atol=1e-5
        )
        assert not np.any(ours["in_direction"])
        direction = np.asarray(state[UPDATES]["in_direction"])
        np.testing.assert_allclose(direction, layer.weight_u.numpy(), rtol=1e-5, atol=1e-5)


def test_power_iteration_converges_from_below() -> None:
    kernel = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    true = np.linalg.svd(np.float64(kernel), compute_uv=False)[0]
    u, estimates = jnp.ones(4) / 2, []
    for _ in range(60):
        sigma, u = power_iteration(jnp.asarray(kernel), u)
        estimates.append(float(sigma))
    assert np.all(np.asarray(estimates) <= true * (1 + 1e-6))
    assert estimates[0] < 0.99 * true
    assert estimates[-1] == pytest.approx(true, rel=1e-5)
    exact, _ = power_iteration(jnp.asarray(kernel), leading_direction(jnp.asarray(kernel)))
    assert float(exact) == pytest.approx(true, rel=1e-6)


def largest(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(np.float64(matrix), compute_uv=False)[0])


def test_sigma_reparam_of_every_matrix_of_a_block() -> None:
    """Each of query, key and value by itself: the model is one of the divided matrices."""
    plain = Decoder(small_config().model, 50)
    decoder = Decoder(small_config(model={"weight_reparametrization": "sigma"}).model, 50)
    tokens_BT = np.asarray([[3, 17, 0, 40, 5]], np.int32)
    params = fast_jit(decoder.init)(jax.random.key(0), tokens_BT)["params"]
    blocks = jax.tree.map(np.array, params["blocks"])
    gain_LC = np.asarray([[2.0, 0.5, 3.0], [1.0, 4.0, 0.7]], np.float32)
    assert blocks["attention"]["qkv_gain"].shape == gain_LC.shape
    blocks["attention"]["qkv_gain"] = gain_LC
    folded: dict[str, dict] = {"attention": {}, "mlp": {}}
    for module, name, width in (
        ("attention", "qkv_kernel", 16),
        ("attention", "out_kernel", 16),
        ("mlp", "in_kernel", 64),
        ("mlp", "out_kernel", 16),
    ):
        raw = blocks[module][name]
        used = np.empty_like(raw)
        for layer in range(2):
            if name == "qkv_kernel":
                for part in range(3):
                    own = raw[layer][:, part]
                    size = largest(own.reshape(16, width))
                    used[layer][:, part] = gain_LC[layer, part] * own / size
            else:
                used[layer] = raw[layer] / largest(raw[layer].reshape(-1, width))
        folded[module][name] = used
    expected = plain.apply({"params": {**params, "blocks": folded}}, tokens_BT)
    found = decoder.apply({"params": {**params, "blocks": blocks}}, tokens_BT)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS[:4])
@pytest.mark.parametrize("mlp", ["two_layer", "fused"])
def test_of_the_mlp_alone(method: str, mlp: str) -> None:
    fused = {"mlp": "fused", "activation": "identity"} if mlp == "fused" else {}
    decoder, params = random_model(0.3, mlp_weight_norm=method, **fused)
    own = params["blocks"]["mlp"]
    name = "kernel" if mlp == "fused" else "out_kernel"
    assert set(params["blocks"]["attention"]) == {"qkv_kernel", "out_kernel"}
    found = capture(decoder, params, np.asarray([[3, 17, 0, 40, 5]], np.int32))
    read = found.mlp_in if mlp == "fused" else found.mlp_post
    for layer in range(2):
        module = {key.replace(name, "in_kernel"): x[layer] for key, x in own.items() if key == name}
        prefix = name.removesuffix("kernel")
        for part in ("gain", "direction"):
            if prefix + part in own:
                module[f"in_{part}"] = own[prefix + part][layer]
        matrix, _ = used(np.asarray(module["in_kernel"]), method, **module)
        np.testing.assert_allclose(
            found.mlp_out[layer], np.asarray(read[layer]) @ matrix, rtol=1e-4, atol=1e-4
        )


# The measured vector in a run


def step_of(parts: Any, state: Any, seed: int) -> Any:
    batch = random_batch(seed)
    tokens_ABT = batch.tokens.reshape(2, 4, -1)
    return fast_jit(parts.train_step)(state, Batch(tokens_ABT, tokens_ABT))[0]


def directions(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kinds = {path: kind_of(path) for path, _ in leaves}
    return {
        ".".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in leaves
        if kinds[path] is Kind.STATISTIC
    }


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"weight_reparametrization": "sigma"},
            {
                "blocks.attention.qkv_direction": (2, 3, 16),
                "blocks.attention.out_direction": (2, 16),
                "blocks.mlp.in_direction": (2, 64),
                "blocks.mlp.out_direction": (2, 16),
            },
        ),
        pytest.param(
            {"mlp_weight_norm": "spectral"},
            {"blocks.mlp.in_direction": (2, 16), "blocks.mlp.out_direction": (2, 64)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_goes_on_from_the_checkpointed_vector(
    changes: dict[str, Any], names: dict[str, tuple], tmp_path: Path
) -> None:
    """Two steps, a checkpoint and a step are three steps; a step is one of power iteration."""
    config = small_config(model=changes, optimizer={"learning_rate": 0.1})
    parts = make_parts(config)
    state = fast_jit(parts.init)(jax.random.key(0))
    assert {name: x.shape for name, x in directions(state.params).items()} == names
    for seed in range(2):
        before, state = state, step_of(parts, state, seed)
    kernel = np.asarray(before.params["blocks"]["mlp"]["out_kernel"])
    if changes.get("mlp_weight_norm") == "spectral":
        kernel = kernel.swapaxes(1, 2)
    u = directions(before.params)["blocks.mlp.out_direction"]
    v = np.einsum("LIO,LO->LI", kernel, u)
    new = np.einsum("LIO,LI->LO", kernel, v / np.linalg.norm(v, axis=1, keepdims=True))
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    found = directions(state.params)["blocks.mlp.out_direction"]
    np.testing.assert_allclose(found, new, atol=1e-5)
    assert np.abs(new - u).max() > 1e-4
    straight = step_of(parts, state, 2)

    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state.without_guard(), "data")
        checkpoints.wait()
        abstract = Placement(config, jax.devices()[:1]).abstract(parts.init)
        restored = checkpoints.restore(abstract, "data")
    resumed = step_of(parts, restored.with_guard(state.guard), 2)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    old, last = directions(state.params), directions(straight.params)
    assert all(np.any(old[name] != last[name]) for name in names)


def test_two_devices_start_without_waiting_for_each_other():
    """On two cores, two batches of matrices at a time would wait for each other's threads."""
    code = (
        "import jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "from training_parts import small_config\n"
        "from nfllm.trainer.placement import Placement\n"
        "from nfllm.training.build import build\n"
        "model = {'num_layers': 4, 'embed_dim': 256, 'weight_reparametrization': 'sigma'}\n"
        "config = small_config(model=model)\n"
        "state = Placement(config).init(build(config, 50).init, jax.random.key(0))\n"
        "print(int(jax.block_until_ready(state).step))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS
    )
    assert done.stdout == "0\n", done.stderr
