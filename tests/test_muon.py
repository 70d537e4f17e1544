"""Muon on stacked matrices: what it takes, what each matrix becomes, and what decays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_model import random_model
from training_parts import make_parts, random_batch, small_config

from nfllm.config import ConfigError
from nfllm.training.muon import _axes
from nfllm.training.optimizer import decay_mask, make_optimizer

RATE = 0.01


def optimizer_of(**changes: Any) -> optax.GradientTransformation:
    config = small_config(optimizer={"variant": "muon", "clip_norm": 0.0, **changes}).optimizer
    return make_optimizer(config, lambda _: jnp.float32(RATE))


def updates_of(params: Any, grads: Any, **changes: Any) -> Any:
    optimizer = optimizer_of(**changes)
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def random_grads(params: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


def singular_values(update: Any, per_head: bool = False) -> dict[str, np.ndarray]:
    """Of every matrix in the blocks: layers, parts and heads are its leading axes."""
    attention, mlp = update["blocks"]["attention"], update["blocks"]["mlp"]
    qkv = np.moveaxis(np.asarray(attention["qkv_kernel"]), 1, 2)  # [L, 3, D, H, K]
    out = np.asarray(attention["out_kernel"])
    if per_head:
        matrices = {"qkv": np.moveaxis(qkv, 3, 2), "out": out}
    else:
        matrices = {
            "qkv": qkv.reshape(*qkv.shape[:3], -1),
            "out": out.reshape(out.shape[0], -1, out.shape[-1]),
        }
    matrices |= {name: np.asarray(mlp[name]) for name in ("in_kernel", "out_kernel")}
    return {name: np.linalg.svd(m, compute_uv=False) for name, m in matrices.items()}


@pytest.mark.parametrize(
    ("module", "name", "shape", "rows", "columns", "columns_per_head"),
    [
        ("attention", "qkv_kernel", (2, 8, 3, 4, 2), (1,), (3, 4), (4,)),  # [L, D, 3, H, K]
        ("attention", "q_kernel", (2, 8, 4, 2), (1,), (2, 3), (3,)),  # [L, D, H, K]
        ("attention", "kv_kernel", (2, 8, 2, 1, 2), (1,), (3, 4), (4,)),
        ("mlp", "in_kernel", (2, 8, 32), (1,), (2,), (2,)),
        ("mlp", "out_kernel", (2, 32, 8), (1,), (2,), (2,)),
    ],
)
def test_which_axes_are_rows_and_which_columns(
    module: str, name: str, shape: Any, rows: Any, columns: Any, columns_per_head: Any
) -> None:
    path = tuple(map(jax.tree_util.DictKey, ("blocks", module, name)))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert _axes(path, x, per_head=False) == optax.contrib.MuonDimensionNumbers(rows, columns)
    assert _axes(path, x, per_head=True) == optax.contrib.MuonDimensionNumbers(
        rows, columns_per_head
    )


@pytest.mark.slow
@pytest.mark.parametrize("per_head", [False, True])
def test_every_matrix_of_every_layer_becomes_nearly_orthogonal(per_head: bool) -> None:
    _, params = random_model(0.1, normalization="layernorm", mlp_bias=True)
    grads = random_grads(params)
    found = updates_of(params, grads, weight_decay=0.0, muon_per_head=per_head)
    for name, values in singular_values(found, per_head).items():
        spread = values.max(-1) / values.min(-1)
        assert spread.max() < 2.2, name
        assert singular_values(grads, per_head)[name].max() > 2
    if not per_head:  # joint matrices are no more than nearly orthogonal where heads are alone
        alone = updates_of(params, grads, weight_decay=0.0, muon_per_head=True)
        assert (
            max(float((v.max(-1) / v.min(-1)).max()) for v in singular_values(alone).values()) > 2.5
        )


@pytest.mark.slow
def test_updates_have_the_size_of_adams_and_the_rest_is_adams() -> None:
    _, params = random_model(0.1, normalization="layernorm", mlp_bias=True)
    grads = random_grads(params)
    found = updates_of(params, grads)
    adam = updates_of(params, grads, variant="adamw", muon_per_head=False)
    for part, name in (("mlp", "in_kernel"), ("attention", "qkv_kernel")):
        kernel = np.asarray(found["blocks"][part][name]) + RATE * 0.1 * np.asarray(
            params["blocks"][part][name]
        )
        assert np.sqrt((kernel**2).mean()) / RATE == pytest.approx(0.2, abs=0.03)
        del found["blocks"][part][name], adam["blocks"][part][name]
    for tree in (found, adam):
        del tree["blocks"]["attention"]["out_kernel"], tree["blocks"]["mlp"]["out_kernel"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, adam)


@pytest.mark.slow
def test_a_layer_of_the_stack_is_as_if_alone() -> None:
    _, params = random_model(0.1, num_layers=3)
    grads = random_grads(params)
    whole = updates_of(params, grads)["blocks"]

    def layer(tree: Any) -> Any:
        return {**tree, "blocks": jax.tree.map(lambda x: x[1:2], tree["blocks"])}

    alone = updates_of(layer(params), layer(grads))["blocks"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1:2], b, rtol=2e-4, atol=1e-7), whole, alone
    )


@pytest.mark.slow
def test_without_gradients_what_decays_shrinks_and_the_rest_stays() -> None:
    _, params = random_model(0.1, normalization="layernorm", mlp_bias=True, attention_bias="all")
    found = updates_of(params, jax.tree.map(jnp.zeros_like, params))
    mask = decay_mask(params, decay_slopes=False)

    def check(update: Any, x: Any, decays: bool) -> None:
        expected = -RATE * 0.1 * np.asarray(x) if decays else np.zeros(x.shape)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-9)

    jax.tree.map(check, found, params, mask)


@pytest.mark.slow
def test_the_size_of_a_gradient_does_not_matter() -> None:
    _, params = random_model(0.1)
    grads = random_grads(params)
    one = updates_of(params, grads, clip_norm=0.0)
    clipped = updates_of(params, grads, clip_norm=0.1)
    for name in ("in_kernel", "out_kernel"):
        np.testing.assert_allclose(
            one["blocks"]["mlp"][name], clipped["blocks"]["mlp"][name], rtol=1e-3, atol=1e-6
        )


@pytest.mark.slow
def test_it_trains() -> None:
    config = small_config(optimizer={"variant": "muon", "learning_rate": 0.01})
    parts = make_parts(config)
    state, step = parts.init(jax.random.key(0)), jax.jit(parts.train_step)
    batch = jax.tree.map(lambda x: x[None], random_batch(0))
    losses = []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss_nats))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
def test_momentum_matters() -> None:
    config = small_config(optimizer={"variant": "muon"}).optimizer
    _, params = random_model(0.1)
    grads = [random_grads(params), jax.tree.map(lambda x: -x[..., ::-1], random_grads(params))]

    def second(momentum: float) -> np.ndarray:
        optimizer = make_optimizer(
            dataclasses.replace(config, muon_momentum=momentum), lambda _: jnp.float32(RATE)
        )
        state = optimizer.init(params)
        for g in grads:
            updates, state = optimizer.update(g, state, params)
        return np.asarray(updates["blocks"]["mlp"]["in_kernel"])

    assert np.abs(second(0.95) - second(0.5)).max() > 0.1 * RATE


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match=r"muon_per_head=True has no effect with optimizer.varia"):
        small_config(optimizer={"muon_per_head": True})
    params = {"token_embedding": jnp.ones((3, 2))}
    with pytest.raises(ConfigError, match="finds no matrix in the blocks"):
        optimizer_of().init(params)
