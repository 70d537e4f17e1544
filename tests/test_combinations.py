"""No part sees the future, whatever it is combined with: all pairs that a config allows."""

import dataclasses
import functools
import itertools
import random
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_parts import small_config

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.checks import names_of, value_names
from nfllm.config.names import (
    ACTIVATION_NAMES,
    ATTENTION_TRANSFORM_NAMES,
    NORMALIZATION_NAMES,
)
from nfllm.model import Decoder
from nfllm.model.intermediates import INTERMEDIATES, RESIDUAL

pytestmark = pytest.mark.slow

PLAIN = dataclasses.replace(
    small_config().model, num_layers=1, embed_dim=16, mlp_dim=None, context_length=5, init_std=0.5
)
# How programs are compiled, and what starts and randomness are, is tested elsewhere.
LEFT_OUT = {"attention_implementation", "scan_layers", "remat", "init_std_scaling", "residual_init"}
# One of each sort: that every name keeps tokens apart, tests/test_register.py tries alone.
SORTS = {
    NORMALIZATION_NAMES: ("none", "rmsnorm", "isru"),
    ACTIVATION_NAMES: ("relu", "gelu", "learnable_leaky_relu", "evonorm_s0", "identity"),
    ATTENTION_TRANSFORM_NAMES: ("none",),
}
TOKENS_BT = np.asarray([[3, 7, 0, 10, 5]], np.int32)  # distinct: each has a row of the table
VOCAB_SIZE = 11
NUM_PARTS = 4  # of the configs, to run side by side


def choices() -> dict[str, tuple[object, ...]]:
    """Every key of a model that is a choice, with its values."""
    found: dict[str, tuple[object, ...]] = {}
    for key, hint in typing.get_type_hints(ModelConfig, include_extras=True).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        names = names_of(hint)
        values = SORTS[names] if names else value_names(hint)
        values = values or ((False, True) if bool in options else ())
        if len(values) > 1 and key not in LEFT_OUT:
            optional = {None} & {option and None for option in options if option is types.NoneType}
            found[key] = (*optional, *values)
    return found


def allowed(**changes: object) -> ModelConfig | None:
    try:
        return dataclasses.replace(PLAIN, **changes)
    except ConfigError:
        return None


@functools.cache
def combinations() -> list[ModelConfig]:
    """Configs in which each pair of choices is that PLAIN allows with these two changed."""
    every = choices()
    singles = [(key, value) for key, values in every.items() for value in values]
    pairs = [
        frozenset([one, two]) for one, two in itertools.combinations(singles, 2) if one[0] != two[0]
    ]
    rng = random.Random(0)
    waiting = {pair for pair in pairs if allowed(**dict(pair)) is not None}
    configs = []
    for pair in pairs:
        if pair not in waiting:
            continue
        chosen = dict(pair)
        for key in rng.sample(sorted(every.keys() - chosen.keys()), len(every) - 2):
            news = {
                value: sum(frozenset([(key, value), old]) in waiting for old in chosen.items())
                for value in every[key]
            }
            for value in sorted(news, key=news.__getitem__, reverse=True):
                if allowed(**chosen, **{key: value}) is not None:
                    chosen[key] = value
                    break
        whole = {key: chosen.get(key, getattr(PLAIN, key)) for key in every}
        waiting -= {frozenset(two) for two in itertools.combinations(whole.items(), 2)}
        configs.append(dataclasses.replace(PLAIN, **chosen))
    return configs


def influences(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which inputs [S] each position [T] depends on: features by gradient, the stream by a change.

    Eagerly, what depends on nothing that changed is the same to the bit. The change is looked for
    in the stream that enters the final normalization: a point function there can be so far in its
    flat part that nothing of it is left in float32.
    """
    model = Decoder(config, VOCAB_SIZE)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(TOKENS_BT))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.5, 0.5, leaf.shape).astype("f"), shapes)
    weight_D = rng.normal(size=config.embed_dim).astype("f")

    def features(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = {"params": params | {"token_embedding": table}}
        options = {"method": model.features, "mutable": [INTERMEDIATES]}
        y_BTD, state = model.apply(whole, TOKENS_BT, **options)
        return y_BTD[0] @ weight_D, state[INTERMEDIATES][RESIDUAL][0]

    table = jnp.asarray(params["token_embedding"])
    with jax.disable_jit():
        _, backward, stream_TD = jax.vjp(features, table, has_aux=True)
        (gradient,) = jax.vmap(backward)(jnp.eye(5))
        changes_SD = rng.normal(size=(5, config.embed_dim))
        moved = [
            features(table.at[token].add(change))[1]
            for token, change in zip(TOKENS_BT[0], changes_SD, strict=True)
        ]
    by_gradient = np.any(np.asarray(gradient)[:, TOKENS_BT[0]] != 0, axis=-1)
    return by_gradient, np.any(np.stack(moved, axis=1) != np.asarray(stream_TD)[:, None], axis=-1)


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_no_pair_of_choices_sees_the_future(part):
    for config in combinations()[part::NUM_PARTS]:
        by_gradient, by_change = influences(config)
        keys = [key for key in choices() if getattr(config, key) != getattr(PLAIN, key)]
        changed = {key: getattr(config, key) for key in keys}
        assert not np.triu(by_gradient, 1).any(), changed
        assert not np.triu(by_change, 1).any(), changed
        assert by_change.any(), changed


def test_every_pair_that_is_allowed_is_in_a_config():
    every = choices()
    assert {"normalization", "activation", "architecture", "mlp_bias", "dyt_shift"} <= set(every)
    found = [{(key, getattr(config, key)) for key in every} for config in combinations()]
    for one, two in itertools.combinations(every, 2):
        for pair in itertools.product(every[one], every[two]):
            wanted = dict(zip((one, two), pair, strict=True))
            assert allowed(**wanted) is None or any(wanted.items() <= c for c in found), wanted
