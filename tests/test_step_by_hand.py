"""Every number of a training step, in NumPy, of a model whose logits are rows of a table."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_parts import small_config

from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.model.intermediates import BY_PRODUCTS, ENTROPY, LOGIT_MAX, LOSSES, UPDATES
from nfllm.training import step as training_step
from nfllm.training.auxiliary import Auxiliary
from nfllm.training.eval_step import make_eval_step
from nfllm.training.state import LossScale, TrainState
from nfllm.training.step import make_train_step

MICRO_BATCHES, DEVICES, ROWS, LENGTH, VOCAB_SIZE, LAYERS = 2, 2, 3, 6, 5, 2
STEP, SKIPPED, SCALE, WEIGHT, RATE = 5, 3, 8.0, 0.7, 0.1

RNG = np.random.default_rng(3)
TOKENS_ADBT = RNG.integers(0, VOCAB_SIZE, (MICRO_BATCHES, DEVICES, ROWS, LENGTH)).astype(np.int32)
LABELS_ADBT = np.where(RNG.random(TOKENS_ADBT.shape) < 0.4, IGNORED_LABEL, TOKENS_ADBT)
TABLES_LVV = RNG.normal(size=(LAYERS, VOCAB_SIZE, VOCAB_SIZE))


class Bigrams:
    """Logits of a token: the sum over layers of its rows, times what dropout is here.

    That is (1 + the sequence's place in the batch) (1 + a number that the key draws).
    """

    config = small_config(model={"embedding_dropout": 0.1}).model
    features, head = "features", "head"

    def apply(
        self,
        variables: dict[str, Any],
        x: jax.Array,
        *,
        method: str,
        mutable: Any = False,
        rngs: dict[str, jax.Array] | None = None,
        dropout_rows_B: jax.Array | None = None,
    ) -> Any:
        if method == self.head:
            return x
        logits_BTV = jnp.sum(variables["params"]["blocks"]["mlp"]["in_kernel"], axis=0)[x]
        if rngs is not None and dropout_rows_B is not None:
            factor_B = (1.0 + dropout_rows_B) * (1.0 + jax.random.uniform(rngs["dropout"]))
            logits_BTV *= factor_B[:, None, None]
        mean = jnp.mean(x.astype(jnp.float32))
        of_heads = {ENTROPY: jnp.full((LAYERS, 1), mean), LOGIT_MAX: jnp.full((LAYERS, 1), mean)}
        collected = {
            BY_PRODUCTS: {"blocks": {"attention": of_heads}},
            LOSSES: {"mean_B": jnp.mean(x.astype(jnp.float32), axis=1)},
            UPDATES: {"final_norm": {"sigma": mean[None]}},
        }
        return (logits_BTV, {name: collected[name] for name in mutable}) if mutable else logits_BTV


def _size(params: Any, collected: Any) -> jax.Array:
    """An auxiliary loss whose gradient is the tables, times a number of each sequence."""
    return collected["mean_B"] * jnp.sum(params["blocks"]["mlp"]["in_kernel"] ** 2) / 2


class Expected(NamedTuple):
    loss: float
    micro_losses: np.ndarray
    grads_LVV: np.ndarray


def _by_hand(weighting: str) -> Expected:
    key = jax.random.fold_in(jax.random.key(small_config().training.seed), STEP)
    drawn = 1.0 + float(jax.random.uniform(key))
    nats_A, grads_AVV = np.zeros(MICRO_BATCHES), np.zeros((MICRO_BATCHES, VOCAB_SIZE, VOCAB_SIZE))
    table_VV = TABLES_LVV.sum(0)
    place = 0
    for a in range(MICRO_BATCHES):
        for tokens, labels in zip(
            TOKENS_ADBT[a].reshape(-1, LENGTH), LABELS_ADBT[a].reshape(-1, LENGTH), strict=True
        ):
            factor = drawn * (1 + place)
            place += 1
            for token, label in zip(tokens[:-1], labels[1:], strict=True):
                if label != IGNORED_LABEL:
                    logits_V = factor * table_VV[token]
                    probs_V = np.exp(logits_V) / np.exp(logits_V).sum()
                    nats_A[a] -= np.log(probs_V[label])
                    grads_AVV[a, token] += factor * (probs_V - np.eye(VOCAB_SIZE)[label])
    targets_A = (LABELS_ADBT[..., 1:] != IGNORED_LABEL).sum((1, 2, 3))
    assert targets_A[0] != targets_A[1]
    assert TOKENS_ADBT[0].mean() != TOKENS_ADBT[1].mean()
    weights_A = 1 / (MICRO_BATCHES * targets_A)
    if weighting == "token":
        weights_A = np.full(MICRO_BATCHES, 1 / targets_A.sum())
    grad_VV = np.einsum("a,avw->vw", weights_A, grads_AVV)
    return Expected(
        nats_A @ weights_A,
        nats_A / targets_A,
        grad_VV + WEIGHT * TOKENS_ADBT.mean() * TABLES_LVV,
    )


@pytest.mark.parametrize(
    ("weighting", "devices"), [("token", 1), ("token", DEVICES), ("micro_batch", DEVICES)]
)
def test_a_step(weighting: str, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into micro-batches, and each over devices, here those of `vmap`."""
    monkeypatch.setattr(
        training_step,
        "make_gating",
        lambda config: lambda params, step: {**params, "shift": 1.0 * step},
    )
    config = small_config(
        optimizer={"accumulation_weighting": weighting},
        telemetry={"entropy_every_step": True, "gradient_norms": True},
    )
    optimizer = optax.sgd(RATE)
    size = Auxiliary("size", WEIGHT, {}, _size)
    train_step = make_train_step(config, Bigrams(), optimizer, lambda k: 0.5**k, (size,))
    params = {
        "blocks": {"mlp": {"in_kernel": jnp.asarray(TABLES_LVV, jnp.float32)}},
        "final_norm": {"sigma": jnp.zeros(1)},
        "shift": jnp.float32(0),
    }
    state = TrainState(
        step=jnp.int32(STEP),
        skipped=jnp.int32(SKIPPED),
        params=params,
        opt_state=optimizer.init(params),
        loss_scale=LossScale(jnp.float32(SCALE), jnp.int32(0)),
        guard=jnp.int32(0),
    )
    batch_DABT = [
        np.moveaxis(x.reshape(MICRO_BATCHES, devices, -1, LENGTH), 1, 0)
        for x in (TOKENS_ADBT, LABELS_ADBT)
    ]

    axis = "devices" if devices > 1 else None

    def on_device(batch: Batch) -> Any:
        return train_step(state, batch, axis_name=axis)

    found, metrics = jax.jit(jax.vmap(on_device, axis_name="devices"))(Batch(*batch_DABT))
    expected = _by_hand(weighting)
    norms_L = np.sqrt((expected.grads_LVV**2).sum((1, 2)))
    mean_A = TOKENS_ADBT.mean((2, 3)) if devices > 1 else TOKENS_ADBT.mean((1, 2, 3))[:, None]
    targets = (LABELS_ADBT[..., 1:] != IGNORED_LABEL).sum()
    auxiliary = TOKENS_ADBT.mean() * (TABLES_LVV**2).sum() / 2
    for d in range(devices):

        def same(actual: Any, wanted: Any, device: int = d) -> None:
            np.testing.assert_allclose(actual[device], wanted, rtol=2e-5, atol=1e-6)

        same(metrics.loss_nats, expected.loss)
        same(metrics.micro_losses, expected.micro_losses)
        same(metrics.num_targets, targets)
        same(metrics.grad_norm_L, norms_L)
        same(metrics.grad_norm, np.sqrt((norms_L**2).sum()))
        same(metrics.learning_rate, 0.5 ** (STEP - SKIPPED))
        same(metrics.loss_scale, SCALE)
        same(metrics.auxiliary["size"], auxiliary)
        same(metrics.entropy_LH, np.full((LAYERS, 1), TOKENS_ADBT.mean()))
        same(metrics.logit_max_LH, np.full((LAYERS, 1), mean_A.max()))
        same(found.params["blocks"]["mlp"]["in_kernel"], TABLES_LVV - RATE * expected.grads_LVV)
        same(found.params["final_norm"]["sigma"], [TOKENS_ADBT.mean()])
        same(found.params["shift"], STEP + 1)  # of the step that comes next
        same(found.step, STEP + 1)
        same(found.skipped, SKIPPED)


def test_an_evaluation_step_sums_over_devices() -> None:
    eval_step = make_eval_step(Bigrams())
    params = {"blocks": {"mlp": {"in_kernel": jnp.asarray(TABLES_LVV, jnp.float32)}}}
    tokens_DBT, labels_DBT = TOKENS_ADBT[0], LABELS_ADBT[0]

    def on_device(batch: Batch) -> Any:
        return eval_step(params, batch, axis_name="devices")

    found = jax.jit(jax.vmap(on_device, axis_name="devices"))(Batch(tokens_DBT, labels_DBT))
    counted = labels_DBT[..., 1:] != IGNORED_LABEL
    logits = TABLES_LVV.sum(0)[tokens_DBT[..., :-1]]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    index = np.where(counted, labels_DBT[..., 1:], 0)[..., None]
    nats = -np.take_along_axis(log_probs, index, -1)[..., 0][counted].sum()
    np.testing.assert_allclose(found.loss_nats, [nats] * DEVICES, rtol=1e-5)
    np.testing.assert_array_equal(found.num_targets, [counted.sum()] * DEVICES)
