"""The grid of softmax-only networks: its models, its published numbers, its claims."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import make_parts, random_batch, small_config

from configs.aero import SCALES, get_experiment
from nfllm.config import CheckpointConfig, Config
from nfllm.experiment.grid import expand
from nfllm.model.decoder import Decoder
from nfllm.papers.aero import find_aero
from nfllm.report.runs import notation
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.placement import Placement
from nfllm.training.telemetry import make_probe

pytestmark = pytest.mark.slow

EVERYTHING = {
    "model": {
        "num_layers": 3,
        "activation": "identity",
        "mlp": "fused",
        "mlp_scaling": "learned",
        "mlp_pruned_layers": 1,
        "softmax_temperature": "head_position",
        "softmax_temperature_init": 0.1,
    },
    "objective": {"entropy_weight": 0.1, "entropy_margin": 0.05},
    "optimizer": {"qk_clip": 0.01},
    "telemetry": {"entropy_every_step": True, "gradient_norms": True},
}


def variants(scale: str) -> dict[str, Config]:
    """The config of each variant, by its name, with the first seed."""
    found = {}
    for entry in expand(get_experiment(scale)):
        found.setdefault(entry.variant, entry.config)
    return found


def test_every_scale_has_every_variant_and_the_papers_shapes() -> None:
    for scale in SCALES:
        found = variants(scale)
        assert list(found) == [
            "sm+ln+g",
            "sm+ln+r",
            "sm+scffn",
            "sm+scfuffn",
            "sm+scfuffn_i",
            "sm(t)+scfuffn",
            "ereg",
            "ereg_released",
            "ereg_fixed",
        ]
    # The last scale is the paper's: GPT-2 with 12 layers.
    names = {variant: notation(config) for variant, config in found.items()}
    assert names["sm+scfuffn_i"] == "SM+ScFuFFN i6"
    assert names["ereg"] == names["ereg_released"] == "EReg(SM(t)+ScFuFFN)"
    # 512 sequences in 4 micro-batches, over which the released code sums.
    assert found["ereg_released"].objective.entropy_weight == pytest.approx(128e-5)
    config = found["sm+scfuffn"]
    model = Decoder(config.model, 50_000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    block_sizes = sum(leaf.size for leaf in jax.tree.leaves(shapes["blocks"]))
    biases, scales = 12 * 2 * 768, 12 * 2
    assert block_sizes == 12 * (4 * 768**2 + 768**2) + biases + scales


@pytest.mark.parametrize(
    ("variant", "perplexity"), [("sm+ln+g", 2.69), ("sm+scffn", 3.50), ("ereg", 3.21)]
)
def test_published_numbers_stand_beside_the_models_that_they_are_of(
    variant: str, perplexity: float
) -> None:
    config = variants("paper")[variant]
    found = find_aero(config.model, notation(config))
    assert found is not None
    assert found.perplexity == perplexity
    small = variants("cpu")[variant]  # of another depth
    assert find_aero(small.model, notation(small)) is None


def test_probes_tell_of_temperatures_gains_and_thresholds() -> None:
    parts = make_parts(small_config(**EVERYTHING))
    params = jax.device_get(parts.init(jax.random.key(0)).params)
    temperature = np.full((2, 2, 12), 0.1, np.float32)
    temperature[1, 0, 3:5] = [-0.2, 0.0]
    params["blocks"]["attention"]["temperature"] = jnp.asarray(temperature)
    params["objective"]["entropy_threshold"] = jnp.full((3, 2), 0.3)
    found = make_probe(parts.model)(params, random_batch(0).tokens)
    np.testing.assert_array_equal(found["temperature_not_positive"], [[0, 0], [2, 0], [0, 0]])
    np.testing.assert_allclose(found["temperature_min"], [[0.1, 0.1], [-0.2, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(found["temperature_max"], np.full((3, 2), 0.1))
    np.testing.assert_allclose(found["entropy_threshold"], np.full((3, 2), 0.3))
    assert found["residual_gain"].shape == found["mlp_alpha"].shape == (2,)
    assert found["entropy_nats"].shape == (3, 2)
    assert found["residual_rms"].shape == (4,)
    assert "mlp_pre_rms" not in found


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_a_resumed_run_is_the_same_to_the_bit(strategy: str, tmp_path) -> None:
    config = small_config(**EVERYTHING, parallel={"strategy": strategy})
    parts = make_parts(config)
    placement = Placement(config, jax.devices()[:2])
    step = placement.train_step(parts.train_step)

    def train(state, numbers):
        for number in numbers:
            state, metrics = step(state, placement.put_train(random_batch(number)))
        assert bool(metrics.finite)
        return state

    whole = train(placement.init(parts.init, jax.random.key(0)), range(4))
    half = train(placement.init(parts.init, jax.random.key(0)), range(2))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(placement.to_checkpoint(half), "data")
        checkpoints.wait()
        restored = checkpoints.restore(placement.abstract(parts.init), "data")
    resumed = train(placement.from_checkpoint(restored), range(2, 4))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    moved = np.asarray(whole.params["objective"]["entropy_threshold"]) - 0.5
    assert np.all(moved != 0)
    assert math.isfinite(moved.sum())
