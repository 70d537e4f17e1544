"""The numbers of the code released with arXiv 2410.09637, at float32 on a CPU.

The tolerances are those under which each known mistake in a reimplementation (another AdamW, a
schedule shifted by one, tanh GELU, ...) fails in at least one file. What this implementation was
measured to be off by is given beside them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity_recordings as recordings
import pytest
from parity_recordings import DEFAULT, OWN_CASES, Recording
from released_code import from_authors, to_authors

from nfllm.analysis import attention_entropy, head_entropy
from nfllm.config import ModelConfig
from nfllm.data.batches import Batch
from nfllm.model import Decoder, capture
from nfllm.model.activations import ACTIVATIONS
from nfllm.training.build import build
from nfllm.training.loss import count_targets, next_token_loss
from nfllm.training.optimizer import decay_mask, make_optimizer
from nfllm.training.schedules import make_schedule, warmup_length
from nfllm.training.state import TrainState

KEY_BIAS = "attn.qk_attn.bias"
SLOPES = "mlp.act.slopes"
POSITIONS = "transformer.wpe.weight"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    logits: float
    probs: float
    entropy: float
    gradient: float  # of a tensor's largest entry


# Measured: 1.8e-7, 6e-8, 5e-7, 7.5e-6 (init); 1.6e-5, 4.8e-6, 2e-6, 2.5e-5 (scaled).
FORWARD = {
    "init": Tolerance(logits=2e-7, probs=6e-8, entropy=2e-6, gradient=1e-5),
    "scaled": Tolerance(logits=3e-5, probs=8e-6, entropy=3e-6, gradient=3e-5),
}
ROUNDING = 1e-7  # relative, of one float32 product
LOSS = 5e-6  # relative; measured: 3e-7


def is_slow(path: Path) -> bool:
    """Before every commit one run, with learned slopes; all in CI, or by option."""
    quick = "traj_init_free_learn_per_layer"
    return path.parent == OWN_CASES and path.name.startswith("traj_") and path.stem != quick


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--parity-dir").resolve()
    files = {
        "forward": recordings.forward_files,
        "trajectory": recordings.trajectory_files,
        "unit": recordings.unit_files,
    }
    for name in files.keys() & set(metafunc.fixturenames):
        found = files[name](folder)
        if not (folder / "manifest.json").exists():
            raise pytest.UsageError(f"--parity-dir {folder} has no manifest.json")
        if name == "unit":  # the test is named after the file
            wanted = metafunc.function.__name__.removeprefix("test_unit_")
            found = [path for path in found if path.stem == wanted]
        metafunc.parametrize(
            name,
            [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * is_slow(p)) for p in found],
        )


def test_the_repository_has_all_recordings():
    counts = [
        len(find(OWN_CASES))
        for find in (recordings.forward_files, recordings.trajectory_files, recordings.unit_files)
    ]
    assert counts == [24, 9, 4]


def start(recording: Recording) -> dict:
    return jax.tree.map(jnp.asarray, from_authors(recording.params, recording.config))


def scanned(config: ModelConfig) -> ModelConfig:
    """The same model with a loop over its layers, which compiles faster."""
    return dataclasses.replace(config, scan_layers=True)


@functools.cache
def compiled_forward(config: ModelConfig, vocab_size: int):
    # Both ways to run the layers are compared: norm-free scanned, the others unrolled.
    model = Decoder(scanned(config) if config.normalization == "none" else config, vocab_size)

    def mean_losses(params, tokens_BT, masked_BT):
        logits_BTV = model.apply({"params": params}, tokens_BT)
        loss, masked = (
            next_token_loss(logits_BTV, labels_BT) / count_targets(labels_BT)
            for labels_BT in (tokens_BT, masked_BT)
        )
        return loss, masked

    @jax.jit
    def forward(params, tokens_BT, masked_BT):
        (loss, masked), gradients = jax.value_and_grad(mean_losses, has_aux=True)(
            params, tokens_BT, masked_BT
        )
        return capture(model, params, tokens_BT), loss, masked, gradients

    return forward


def test_forward(forward: Path):
    recording = recordings.read(forward)
    recorded, tolerance = recording.arrays, FORWARD[recording.regime]
    captured, loss, masked, gradients = compiled_forward(recording.config, recording.vocab_size)(
        start(recording),
        recorded["input_ids"],
        recorded.get("labels_masked", recorded["input_ids"]),
    )
    probs_LBHTS = np.asarray(captured.attention_probs)
    assert not np.any(np.triu(probs_LBHTS, k=1))
    entropy_LBH = head_entropy(attention_entropy(probs_LBHTS))
    close(captured.logits, recorded["logits"], tolerance.logits, recording.noise("logits_maxabs"))
    for name, value, absolute, noise in (
        ("attn", probs_LBHTS, tolerance.probs, recording.noise("attn_maxabs")),
        ("entropy_head", entropy_LBH.mean(1), tolerance.entropy, 0.0),
        ("entropy_layer", entropy_LBH.mean((1, 2)), tolerance.entropy, 0.0),
        ("loss", loss, LOSS * float(loss), 0.0),
        ("loss_masked", masked, LOSS * float(masked), 0.0),
    ):
        if name in recorded:
            close(value, recorded[name], absolute, noise, name)

    ours = to_authors(gradients, recording.config)
    relative = max(tolerance.gradient, 4 * recording.noise("grad_rel_max"))
    for name, theirs in recording.groups.get("grad", {}).items():
        compare_gradient(name, ours[name], theirs, relative)


def compare_gradient(name: str, ours: np.ndarray, theirs: np.ndarray, relative: float) -> None:
    if name == POSITIONS:
        assert not np.any(ours[len(theirs) :]), f"{name}: unused positions have a gradient"
        ours = ours[: len(theirs)]
    if name.endswith(KEY_BIAS):
        # The softmax ignores a shift that all keys share, so this gradient is rounding noise.
        query, key = np.split(ours, 2)
        assert np.abs(key).max() <= 1e-4 * np.abs(query).max(), f"{name}: the key half is not 0"
        ours, theirs = query, np.split(theirs, 2)[0]
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * largest, err_msg=name)


def close(ours, theirs, tolerance: float, noise: float = 0.0, name: str = "") -> None:
    """Equal within `tolerance`, or within four times the recording's own distance from float64."""
    tolerance = max(tolerance, 4 * noise)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


def test_parameters(forward: Path):
    """Names, shapes, and which parameters are trained and decayed, as the manifest lists them."""
    recording = recordings.read(forward)
    config = recording.config
    variants = recordings.manifest(forward.parent).get("variants", {})
    if recordings.variant(forward) not in variants:
        pytest.skip("the manifest does not list this variant")
    listed = variants[recordings.variant(forward)]
    params = from_authors(recording.params, config)
    model = Decoder(config, recording.vocab_size)
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    initial = jax.eval_shape(lambda key: model.init(key, tokens_BT)["params"], jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, initial)

    tensors = to_authors(params, config)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    assert shapes == {name: shape for name, shape, *_ in listed["params"]}
    assert sum(value.size for value in tensors.values()) == listed["n_params_printed"]

    ones = jax.tree.map(np.ones_like, params)
    trained = to_authors(ones, config)
    mask = decay_mask(params, decay_slopes=True)
    decay = to_authors(jax.tree.map(lambda x, decays: 0.1 * x * decays, ones, mask), config)
    for name, _, trainable, weight_decay in listed["params"]:
        assert np.any(trained[name]) == trainable, name
        assert decay[name].max() == np.float32(weight_decay or 0.0), name


@functools.cache
def compiled_step(config: ModelConfig, vocab_size: int, steps: int, micro_batches: int):
    """The project's own first state and training step with the released recipe."""
    optimizer, training = recordings.recipe(steps, micro_batches)
    recipe = dataclasses.replace(
        DEFAULT, model=scanned(config), optimizer=optimizer, training=training
    )
    built = build(recipe, vocab_size)
    return jax.jit(built.init), jax.jit(built.train_step)


def test_trajectory(trajectory: Path):
    recording = recordings.read(trajectory)
    recorded, config = recording.arrays, recording.config
    tokens, labels = recordings.batches(trajectory.parent / recording.meta["batches"])
    num_steps = len(recorded["lr"])
    init, step = compiled_step(config, recording.vocab_size, num_steps, tokens.shape[1])
    params = start(recording)
    check_first_entropy(recording, params, tokens[0, 0])

    state = init(jax.random.key(0)).replace(params=params)
    metrics, slopes = [], [slopes_of(state)]
    for tokens_ABT, labels_ABT in zip(tokens, labels, strict=True):
        state, measured = step(state, Batch(tokens_ABT, labels_ABT))
        metrics.append(measured)
        slopes.append(slopes_of(state))
    metrics = jax.tree.map(lambda *values: np.stack(values), *metrics)

    # Measured: 4e-7 and 3e-6, but 1e-6 and 8e-5 where a pre-activation changes sign because of
    # rounding, as one does in traj_scaled_free_learn_per_layer.
    kinks = "relu" in config.activation and config.normalization == "none"
    noisy = kinks and recording.regime == "scaled"
    loss_tolerance, norm_tolerance = (5e-5, 5e-4) if noisy else (5e-6, 1e-5)
    for name, value, relative in (
        ("lr", metrics.learning_rate, 5e-7),
        ("micro_loss", metrics.micro_losses, loss_tolerance),
        ("step_loss", metrics.loss_nats, loss_tolerance),
        ("grad_norm", metrics.grad_norm, norm_tolerance),
    ):
        if name in recorded:
            relative = max(relative, 4 * recording.relative_noise(name))
            np.testing.assert_allclose(value, recorded[name], rtol=relative, err_msg=name)
    if recorded.get("slopes", np.zeros(0)).size:
        check_slopes(recorded, np.stack(slopes))
    check_final(recording, to_authors(state.params, config), to_authors(params, config))


def slopes_of(state: TrainState) -> np.ndarray:
    return np.asarray(state.params["blocks"]["mlp"].get("slope", []))


def check_first_entropy(recording: Recording, params: dict, tokens_BT: np.ndarray) -> None:
    """The released code logs entropies and NaN counts of the first micro-batch of a step."""
    if "logged_entropy_step0" not in recording.arrays:
        return
    tolerance = FORWARD[recording.regime].entropy
    model = Decoder(scanned(recording.config), recording.vocab_size)
    probs_LBHTS = capture(model, params, tokens_BT).attention_probs
    entropy_LBH = head_entropy(attention_entropy(probs_LBHTS))
    close(entropy_LBH.mean((1, 2)), recording.arrays["logged_entropy_step0"], tolerance)
    assert not np.any(recording.arrays["logged_nan_count_step0"])


def check_slopes(recorded: dict[str, np.ndarray], ours: np.ndarray) -> None:
    """Own slopes follow the recording; the others of "per_layer" follow weight decay alone."""
    theirs = recorded["slopes"]
    num_layers, width = theirs.shape[1:]
    own = np.eye(num_layers, dtype=bool) if width > 1 else np.ones((num_layers, 1), bool)
    np.testing.assert_allclose(ours, theirs[:, own], rtol=0, atol=1e-6)  # measured: 5e-8
    kept = np.cumprod(1 - recorded["lr"] * 0.1)
    expected = np.outer(kept, theirs[0, ~own])
    np.testing.assert_allclose(theirs[1:, ~own], expected, rtol=ROUNDING * len(kept))


def check_final(recording: Recording, ours: dict, initial: dict) -> None:
    """Parameters after the last step; the norms cover those of which no values are recorded."""
    groups = recording.groups
    length = recordings.context(recording)
    rates = recording.arrays["lr"]
    unused = initial[POSITIONS][length:] * np.prod(1 - rates * 0.1)
    np.testing.assert_allclose(ours[POSITIONS][length:], unused, rtol=ROUNDING * len(rates))
    ours, initial = ({**x, POSITIONS: x[POSITIONS][:length]} for x in (ours, initial))
    for name, theirs in groups.get("final", {}).items():
        mine = ours[name]
        if name.endswith(KEY_BIAS):
            mine, theirs = (np.split(x, 2)[0] for x in (mine, theirs))
        if not name.endswith(SLOPES):  # compared at every step
            # Measured: 3.4e-5, of parameters whose second moment is near the square of epsilon.
            close(mine, theirs, 1e-4, recording.final_noise(), name)
    for group, origin in (("final_l2", 0.0), ("final_delta_l2", 1.0)):
        for name, theirs in groups.get(group, {}).items():
            if not name.endswith((SLOPES, KEY_BIAS)):
                moved = ours[name].astype(np.float64) - origin * initial[name]
                # Measured: 2e-6.
                np.testing.assert_allclose(np.linalg.norm(moved), theirs, rtol=1e-4, err_msg=name)


def test_unit_activations(unit: Path):
    with np.load(unit) as file:
        recorded = dict(file)
    x = jnp.asarray(recorded["x"])
    names = [key.removeprefix("y_") for key in recorded if key.startswith("y_")]
    assert names, "no activation is recorded"
    for name in names:
        kind, slope = ("leaky_relu", float(name[5:])) if name.startswith("lrelu") else (name, 0.0)
        y, slope_of = jax.vjp(lambda x, f=ACTIVATIONS[kind], c=slope: f(x, c), x)
        (dy,) = slope_of(jnp.ones_like(x))
        # Measured: 5e-7 (gelu; the two libraries' error functions), 0 elsewhere.
        close(y, recorded[f"y_{name}"], 2e-6)
        close(dy, recorded[f"dy_{name}"], 2e-6)


@pytest.mark.parametrize("variant", ["hf_adamw", "adamw"])
def test_unit_adamw(unit: Path, variant: str):
    with np.load(unit) as file:
        recorded = dict(file)
    rates = jnp.asarray(recorded["lr"], jnp.float32)
    beta1, beta2 = recorded["betas"]
    decayed, undecayed = recorded["weight_decay"]
    assert undecayed == 0.0
    config = dataclasses.replace(
        DEFAULT.optimizer,
        variant=variant,
        beta1=float(beta1),
        beta2=float(beta2),
        epsilon=float(recorded["eps"]),
        weight_decay=float(decayed),
        clip_norm=0.0,
    )
    optimizer = make_optimizer(config, lambda count: rates[count])
    # The decay rule is by name.
    params = dict(zip(("kernel", "bias"), jnp.asarray(recorded["p0"]), strict=True))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    theirs = recorded["params_hf" if variant == "hf_adamw" else "params_torch"]
    for gradient, expected in zip(recorded["grads"], theirs, strict=True):
        gradients = dict(zip(("kernel", "bias"), jnp.asarray(gradient), strict=True))
        updates, state = update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        ours = np.stack([params["kernel"], params["bias"]])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)  # measured: 4e-7


def test_unit_schedule(unit: Path):
    with np.load(unit) as file:
        recorded = dict(file)
    totals = [int(key.removeprefix("lr_")) for key in recorded if key.startswith("lr_")]
    assert totals, "no schedule is recorded"
    for total in totals:
        config, _ = recordings.recipe(total, 1)
        assert warmup_length(config, total) == recorded[f"warmup_{total}"]
        steps = jnp.asarray(recorded[f"step_{total}"], jnp.int32)
        ours = jax.vmap(make_schedule(config, total))(steps)
        np.testing.assert_allclose(ours, recorded[f"lr_{total}"], rtol=5e-7, err_msg=str(total))


def test_unit_entropy_nan(unit: Path):
    """The released code's `nansum` treats NaN as 0; here it is NaN, and counted apart."""
    with np.load(unit) as file:
        recorded = dict(file)
    probs_LBHTS = recorded["attn"]
    is_nan = np.isnan(probs_LBHTS)
    entropy_LBHT = np.asarray(attention_entropy(probs_LBHTS))
    np.testing.assert_array_equal(np.isnan(entropy_LBHT), is_nan.any(-1))
    as_released = np.asarray(
        attention_entropy(np.where(is_nan, 0.0, probs_LBHTS), tolerance=math.inf)
    )
    clean = ~is_nan.any(-1)
    np.testing.assert_array_equal(entropy_LBHT[clean], as_released[clean])
    heads_LH = head_entropy(as_released).mean(1)
    close(heads_LH, recorded["entropy_head"], 2e-6)
    close(heads_LH.mean(1), recorded["logged_entropy_layer"], 2e-6)
    count_L = is_nan.sum((1, 3, 4)).mean(1)
    np.testing.assert_array_equal(count_L, recorded["logged_nan_count_layer"])
