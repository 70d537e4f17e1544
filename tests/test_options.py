"""Every key of model.* and optimizer.* changes something that a run computes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_jit import fast_jit

from nfllm.config import (
    IGNORED_LABEL,
    Config,
    ConfigError,
    ModelConfig,
    OptimizerConfig,
    get_config,
)
from nfllm.data.batches import Batch
from nfllm.model import Decoder
from nfllm.model.register import register_attention_transform
from nfllm.trainer.program import Program
from nfllm.training.build import build
from nfllm.training.optimizer import make_optimizer
from nfllm.training.schedules import make_schedule

DEFAULT = Config.from_dict(get_config())
TINY = dataclasses.replace(
    DEFAULT.model, num_layers=2, num_heads=2, embed_dim=16, mlp_dim=12, context_length=6
)
TOKENS_BT = np.asarray([[1, 5, 3, 9, 2], [7, 0, 8, 4, 6]], np.int32)
NEOX = {"architecture": "gpt_neox", "rotary_fraction": 1.0}
FROZEN = {"normalization": "frozen_layernorm"}
LEARNED = {"activation": "learnable_leaky_relu"}

# Key: what else is set, the two values, and what must differ.
MODEL_KEYS: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "architecture": ({}, "gpt2", "gpt_neox", "shapes"),
    "num_layers": ({}, 2, 3, "shapes"),
    "num_heads": ({}, 2, 4, "shapes"),
    "num_kv_heads": ({}, None, 1, "shapes"),
    "embed_dim": ({}, 16, 8, "shapes"),
    "mlp_dim": ({}, 12, None, "shapes"),
    "context_length": ({}, 6, 7, "shapes"),
    "normalization": ({}, "none", "layernorm", "shapes"),
    "dyt_alpha_attention": ({"normalization": "dyt"}, None, 0.8, "initial"),
    "dyt_alpha_mlp": ({"normalization": "dyt"}, None, 0.2, "initial"),
    "dyt_alpha_final": ({"final_normalization": "derf"}, None, 0.2, "initial"),
    "dyt_shift": ({"normalization": "dyt"}, None, True, "shapes"),
    "embedding_scale": ({}, "none", "learned", "shapes"),
    "attention_normalization": ({}, None, "rmsnorm", "shapes"),
    "mlp_normalization": ({}, None, "rmsnorm", "shapes"),
    "final_normalization": ({}, "layernorm", "none", "shapes"),
    "qk_normalization": ({}, "none", "rmsnorm", "shapes"),
    "attention_implementation": ({}, "explicit", "xla", "program"),
    "frozen_first_position": (FROZEN, False, True, "shapes"),
    "frozen_momentum": (FROZEN, 0.9, 0.5, "updates"),
    "head_bias": ({}, False, True, "shapes"),
    "mixer": ({}, "softmax", "regla", "shapes"),
    "normalization_groups": ({"normalization": "evonorm_s0"}, None, 2, "logits"),
    "attention_transform": ({}, "none", "test_cap", "logits"),
    "norm_epsilon": ({}, 1e-5, 1e-2, "logits"),
    "activation": ({}, "relu", "gelu", "logits"),
    "negative_slope": ({"activation": "leaky_relu"}, None, 0.3, "logits"),
    "slope_sharing": (LEARNED, None, "model", "shapes"),
    "helu_margin": ({"activation": "helu"}, None, 0.9, "gradients"),
    "mlp": ({"activation": "identity", "mlp_dim": None}, "two_layer", "fused", "shapes"),
    "mlp_pruned_layers": ({}, 0, 1, "shapes"),
    "mlp_scaling": ({}, "none", "learned", "shapes"),
    "softmax_temperature": ({}, "none", "head", "shapes"),
    "softmax_temperature_init": ({"softmax_temperature": "head"}, None, 0.1, "initial"),
    "attention_bias": ({}, "none", "qk", "shapes"),
    "mlp_bias": ({}, False, True, "shapes"),
    "tie_embeddings": ({}, None, False, "shapes"),
    "rotary_fraction": (NEOX, 1.0, 0.5, "logits"),
    "rotary_base": (NEOX, None, 10.0, "logits"),
    "embedding_dropout": ({}, 0.0, 0.5, "dropped"),
    "attention_dropout": ({}, 0.0, 0.5, "dropped"),
    "residual_dropout": ({}, 0.0, 0.5, "dropped"),
    "init_std": ({}, 0.02, 0.03, "initial"),
    "init_std_scaling": ({}, "none", "width", "initial"),
    "norm_placement": ({"normalization": "layernorm"}, "pre", "post", "shapes"),
    "embedding_normalization": ({}, "none", "rmsnorm", "shapes"),
    "attention_output_normalization": ({}, "none", "rmsnorm", "shapes"),
    "mlp_hidden_normalization": ({}, "none", "rmsnorm", "shapes"),
    "head_gains": ({}, False, True, "shapes"),
    "mlp_skip_gains": ({}, False, True, "shapes"),
    "attention_branch_scale": ({}, 1.0, 0.2, "logits"),
    "mlp_branch_scale": ({}, 1.0, 0.2, "logits"),
    "branch_scaling": ({}, "fixed", "learned", "shapes"),
    "attention_skip": ({}, 1.0, 0.0, "logits"),
    "mlp_skip": ({}, 1.0, 0.0, "logits"),
    "mlp_weight_norm": ({}, "none", "hypersphere", "logits"),
    "weight_reparametrization": ({}, "none", "sigma", "shapes"),
    "attention_shaping": ({}, "none", "shaped", "shapes"),
    "value_projection": ({}, "dense", "none", "shapes"),
    "output_projection": ({}, "dense", "none", "shapes"),
    "query_init_std": ({}, None, 0.0, "initial"),
    "residual_init": ({}, "plain", "depth", "initial"),
    "scan_layers": ({}, False, True, "program"),
    "remat": ({}, False, True, "program"),
}


class Observed:
    """What a model config leads to, each aspect as something comparable."""

    def __init__(self, config: ModelConfig) -> None:
        self._model = Decoder(config, 11)
        shapes = jax.eval_shape(self._init)
        generator = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
        )

    def _init(self) -> dict:
        return self._model.init(jax.random.key(0), jnp.asarray(TOKENS_BT))["params"]

    def _apply(self, params: dict, **options: Any) -> jax.Array:
        return self._model.apply({"params": params}, TOKENS_BT, **options)

    def shapes(self) -> object:
        return jax.tree.map(np.shape, self.params)

    def initial(self) -> object:
        return jax.tree.map(lambda x: np.asarray(x).tolist(), fast_jit(self._init)())

    def logits(self) -> object:
        with jax.disable_jit():
            return np.asarray(self._apply(self.params)).tolist()

    def dropped(self) -> object:
        options = {"dropout_rows_B": jnp.arange(2), "rngs": {"dropout": jax.random.key(1)}}
        apply = fast_jit(lambda params: self._apply(params, **options))
        return np.asarray(apply(self.params)).tolist()

    def gradients(self) -> object:
        with jax.disable_jit():
            gradients = jax.grad(lambda params: jnp.sum(self._apply(params) ** 2))(self.params)
        return jax.tree.map(lambda x: np.asarray(x).tolist(), gradients)

    def updates(self) -> object:
        for norm in ("attention_norm", "mlp_norm"):  # a norm that is not removed yet measures
            self.params["blocks"][norm]["norm_gate"][:] = 1.0
            self.params["blocks"][norm]["sigma"][:] = 1.0
        with jax.disable_jit():
            _, found = self._apply(self.params, mutable=["updates"])
        return jax.tree.map(lambda x: np.asarray(x).tolist(), found)

    def program(self) -> object:
        return str(jax.make_jaxpr(jax.grad(lambda p: self._apply(p).sum()))(self.params))


@pytest.fixture(autouse=True)
def own_transform(registries: None) -> None:
    register_attention_transform("test_cap", lambda logits: jnp.tanh(logits))


def test_every_key_is_here():
    assert set(MODEL_KEYS) == {field.name for field in dataclasses.fields(ModelConfig)}
    # Below, and in test_qk_clip.py and test_muon.py.
    elsewhere = {"accumulation_weighting", "qk_clip", "muon_momentum", "muon_per_head"}
    assert set(OPTIMIZER_KEYS) | elsewhere == {
        field.name for field in dataclasses.fields(OptimizerConfig)
    }


COMPILED = {
    key
    for key, (_, _, _, aspect) in MODEL_KEYS.items()
    if aspect in ("initial", "dropped", "gradients", "updates")
} - {"init_std", "embedding_dropout"}


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=[pytest.mark.slow] * (key in COMPILED)) for key in MODEL_KEYS]
)
def test_model_key(key):
    others, first, second, aspect = MODEL_KEYS[key]
    config = dataclasses.replace(TINY, **others)
    one, same, two = (
        getattr(Observed(dataclasses.replace(config, **{key: value})), aspect)()
        for value in (first, first, second)
    )
    assert one == same
    assert one != two


@pytest.mark.parametrize("sharing", ["layer", "untied_global"])
def test_slopes_of_each_layer_are_used(sharing):
    config = dataclasses.replace(TINY, **LEARNED, slope_sharing=sharing)
    slope = np.asarray(Observed(config).gradients()["blocks"]["mlp"]["slope"])
    assert slope.shape == (2,)
    assert np.all(slope != 0)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_ways_to_compile_do_not_change_the_numbers(remat, scan_layers):
    config = dataclasses.replace(TINY, remat=remat, scan_layers=scan_layers)
    found, plain = (Observed(c).gradients() for c in (config, TINY))
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5), found, plain
    )


POLYNOMIAL = {"schedule": "polynomial"}
OPTIMIZER_KEYS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "variant": ({"epsilon": 1e-2}, "adamw", "hf_adamw"),
    "learning_rate": ({}, 0.02, 0.03),
    "final_learning_rate": ({}, 0.0, 0.001),
    "schedule": ({}, "cosine", "polynomial"),
    "schedule_power": (POLYNOMIAL, 1.0, 2.0),
    "warmup_steps": ({}, 1, 3),
    "warmup_fraction": ({"warmup_steps": None}, 0.1, 0.6),
    "warmup_from_zero": ({}, False, True),
    "beta1": ({}, 0.9, 0.8),
    "beta2": ({}, 0.95, 0.9),
    "epsilon": ({}, 1e-8, 1e-2),
    "weight_decay": ({}, 0.1, 0.2),
    "decay_slopes": ({}, False, True),
    "clip_norm": ({}, 1.0, 0.0),
}


def train(config: OptimizerConfig) -> dict[str, np.ndarray]:
    """Parameters of each kind after six updates."""
    optimizer = make_optimizer(config, make_schedule(config, 6))
    params = {name: jnp.ones(3) for name in ("kernel", "bias", "slope")}
    state = optimizer.init(params)
    generator = np.random.default_rng(0)
    for _ in range(6):
        gradients = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=3)), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("key", OPTIMIZER_KEYS)
def test_optimizer_key(key):
    others, first, second = OPTIMIZER_KEYS[key]
    config = dataclasses.replace(
        DEFAULT.optimizer, **{"learning_rate": 0.02, "warmup_steps": 1, **others}
    )
    one, same, two = (
        train(dataclasses.replace(config, **{key: value})) for value in (first, first, second)
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    changed = {name for name in one if np.abs(one[name] - two[name]).max() > 1e-6}
    decayed = {"weight_decay": {"kernel"}, "decay_slopes": {"slope"}}
    assert changed == decayed.get(key, {"kernel", "bias", "slope"})


@pytest.mark.slow
def test_accumulation_weighting():
    """One micro-batch has four targets and the other one: 1/2 and 1/2, or 4/5 and 1/5."""
    labels_ABT = TOKENS_BT[:, None].copy()
    labels_ABT[1, :, 2:] = IGNORED_LABEL
    losses = {}
    for weighting in ("token", "micro_batch"):
        config = dataclasses.replace(
            DEFAULT,
            model=TINY,
            optimizer=dataclasses.replace(DEFAULT.optimizer, accumulation_weighting=weighting),
        )
        built = build(config, 11)
        state = built.init(jax.random.key(0)).replace(params=Observed(TINY).params)
        batch = Batch(TOKENS_BT[:, None], labels_ABT)
        _, metrics = fast_jit(built.train_step)(state, batch)
        first, second = np.asarray(metrics.micro_losses, np.float64)
        losses[weighting] = float(metrics.loss_nats)
    assert losses["micro_batch"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert losses["token"] == pytest.approx((4 * first + second) / 5, rel=1e-5)
    assert abs(losses["token"] - losses["micro_batch"]) > 1e-3


def test_float64_by_the_environment_is_refused_in_a_line():
    """JAX would make float64 of some of the state's float32, and the step could not be compiled."""
    with jax.enable_x64(True), pytest.raises(ConfigError, match="JAX_ENABLE_X64 is set, but train"):
        Program(DEFAULT)
