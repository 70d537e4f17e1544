"""Fifty steps by every fast path lead to the losses of a plain float32 step, on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_parts import VOCAB_SIZE, make_parts, random_batch, small_config

from nfllm.model.decoder import Decoder
from nfllm.model.tuning import TUNINGS, tuning
from nfllm.trainer.placement import Placement
from nfllm.training.optimizer import make_optimizer
from nfllm.training.schedules import make_schedule

pytestmark = pytest.mark.slow

STEPS = 50
BASE = {"training": {"steps": STEPS}, "optimizer": {"learning_rate": 5e-3, "warmup_steps": 5}}


def _config(**sections):
    names = {*BASE, *sections}
    return small_config(**{name: BASE.get(name, {}) | sections.get(name, {}) for name in names})


def _batch(step):
    return random_batch(step % 2)  # few enough to be learned by heart


@pytest.fixture(scope="module")
def plain_losses():
    """The step in its textbook form, which shares only the model and the optimizer."""
    config = _config(model={"attention_implementation": "explicit"})
    model = Decoder(config.model, VOCAB_SIZE)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, STEPS))

    @jax.jit
    def step(params, opt_state, tokens_BT):
        def mean_loss(params):
            logits_BTV = model.apply({"params": params}, tokens_BT)
            log_probs_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
            return -jnp.mean(jnp.take_along_axis(log_probs_BTV, tokens_BT[:, 1:, None], axis=-1))

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.jit(make_parts(config).init)(jax.random.key(0)).params
    opt_state, losses = optimizer.init(params), []
    for number in range(STEPS):
        params, opt_state, loss = step(params, opt_state, _batch(number).tokens)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5
    return np.asarray(losses)


TILES = {"loss_tile_rows": 24}
BLOCKS = {"attention_implementation": "blocks"}
XLA = {"attention_implementation": "xla"}


@pytest.mark.usefixtures("blocks_of_five_queries")
@pytest.mark.parametrize(
    ("devices", "tolerance", "sections"),
    [
        (1, 1e-5, {"model": BLOCKS, "training": {**TILES, "gradient_accumulation": 2}}),
        (4, 1e-5, {"model": {**XLA, "scan_layers": True, "remat": True}}),
        (2, 1e-5, {"parallel": {"strategy": "fsdp"}, "training": {**TILES}}),
        (1, 1e-5, {"model": BLOCKS, "telemetry": {"entropy_every_step": True}}),
        (1, 1e-2, {"model": BLOCKS, "training": {"dtype": "bfloat16"}}),
        (2, 1e-2, {"model": XLA, "training": {**TILES, "dtype": "bfloat16"}}),
    ],
    ids=str,
)
def test_losses_of_fifty_steps(devices, tolerance, sections, plain_losses, monkeypatch):
    if "loss_tile_rows" in sections.get("training", {}):
        tuned = dataclasses.replace(tuning(), plain_loss_bytes=0)
        monkeypatch.setitem(TUNINGS, "cpu", tuned)
    config = _config(**sections)
    parts, parallel = make_parts(config), Placement(config, jax.devices()[:devices])
    state, step = (
        parallel.init(parts.init, jax.random.key(0)),
        parallel.train_step(parts.train_step),
    )
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, parallel.put_train(_batch(number)))
        losses.append(float(metrics.loss_nats))
    np.testing.assert_allclose(losses, plain_losses, rtol=tolerance)
