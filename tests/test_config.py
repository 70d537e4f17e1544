"""Bad input is refused by name, before anything compiles; good input comes back unchanged."""

import dataclasses
import json
import subprocess
import sys
import typing

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import nfllm
from nfllm.config import (
    ACTIVATION_NAMES,
    NORMALIZATION_NAMES,
    Architecture,
    Config,
    ConfigError,
    differences,
    get_config,
    suggest,
)

DEFAULT = Config.from_dict(get_config())


def changed(**values: object) -> dict:
    """The default as nested dictionaries, with `section__key` changed."""
    config = DEFAULT.to_dict()
    for name, value in values.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


def refuse(message: str, **values: object) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(changed(**values))


def test_the_default_comes_back_from_json():
    assert Config.from_dict(json.loads(json.dumps(DEFAULT.to_dict()))) == DEFAULT


def test_every_key_is_declared_in_the_default_file():
    sections = typing.get_type_hints(Config)
    declared = {name: set(keys) for name, keys in get_config().to_dict().items()}
    assert declared == {
        name: {field.name for field in dataclasses.fields(section)}
        for name, section in sections.items()
    }


def test_nothing_heavy_is_imported_to_check_a_config():
    code = "import sys, nfllm.config; print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "value", "nearest", "valid"),
    [
        ("model__activation", "rleu", "relu", tuple(ACTIVATION_NAMES)),
        ("model__activation", "leakyrelu", "leaky_relu", tuple(ACTIVATION_NAMES)),
        ("model__activation", "Gelu", "gelu", tuple(ACTIVATION_NAMES)),
        ("model__activation", "SiLU", "silu", tuple(ACTIVATION_NAMES)),
        ("model__normalization", "layer_norm", "layernorm", tuple(NORMALIZATION_NAMES)),
        ("model__normalization", "RMSNorm", "rmsnorm", tuple(NORMALIZATION_NAMES)),
        ("model__final_normalization", "rsmnorm", "rmsnorm", tuple(NORMALIZATION_NAMES)),
        ("model__qk_normalization", "dvt", "dyt", tuple(NORMALIZATION_NAMES)),
        ("model__architecture", "gpt-neox", "gpt_neox", typing.get_args(Architecture)),
        ("model__attention_bias", "al", "all", ("none", "qk", "all")),
        ("optimizer__variant", "adam", "adamw", ("adamw", "hf_adamw", "muon")),
        ("optimizer__schedule", "cosin", "cosine", ("polynomial", "cosine", "constant")),
        ("optimizer__accumulation_weighting", "tokens", "token", ("token", "micro_batch")),
        ("training__dtype", "float61", "float16", ("auto", "float32", "bfloat16", "float16")),
        ("parallel__strategy", "fspd", "fsdp", ("pmap", "fsdp")),
    ],
)
def test_unknown_names(name, value, nearest, valid):
    section, key = name.split("__")
    with pytest.raises(ConfigError) as error:
        Config.from_dict(changed(**{name: value}))
    assert str(error.value) == (
        f"unknown {key} {value!r} (key {section}.{key}); did you mean {nearest!r}? "
        f"choose from {', '.join(sorted(valid))}"
    )


def test_a_name_like_no_other_gets_no_suggestion():
    assert suggest("zzz", ["relu", "gelu"]) == "choose from gelu, relu"
    refuse("unknown activation 'zzz' .*; choose from evonorm_s0, gelu, ", model__activation="zzz")


def test_sizes_that_do_not_fit():
    refuse(
        r"model\.num_heads=5 does not divide model\.embed_dim=64; choose a divisor of 64",
        model__num_heads=5,
    )
    refuse(r"model\.context_length=1 must be at least 2", model__context_length=1)
    refuse(
        r"training\.gradient_accumulation=3 does not divide training\.batch_size=8",
        training__gradient_accumulation=3,
    )
    values = {"model__architecture": "gpt_neox", "model__rotary_fraction": 0.2}
    refuse(r"rotary width of 3 of head width 16; rotation works on pairs", **values)


def test_a_seed_that_no_key_can_hold():
    refuse(r"training\.seed=4294967296 must be below 2\*\*32: the param", training__seed=2**32)


def test_more_steps_than_a_device_counts():
    refuse(r"training\.steps=2147483648 must be below 2\*\*31", training__steps=2**31)


def test_a_constant_schedule_has_no_final_rate():
    values = {"optimizer__schedule": "constant", "optimizer__learning_rate": 5e-6}
    assert Config.from_dict(changed(**values)).optimizer.learning_rate == 5e-6


def test_what_needs_attention_logits_as_they_are(registries):
    nfllm.register_attention_transform("cap", lambda logits: 50 * jnp.tanh(logits / 50))
    refuse(
        r"optimizer\.qk_clip=20\.0 does not work with model\.attention_transform='cap'",
        optimizer__qk_clip=20.0,
        model__attention_transform="cap",
    )
    refuse(
        r"removal\.scale_weight=0\.1 is computed by a step that forms attention maps, which "
        r"model\.attention_implementation='xla' does not",
        removal__scale_weight=0.1,
        model__final_normalization="frozen_layernorm",
        model__attention_implementation="xla",
    )


def test_a_policy_that_float16_cannot_have():
    refuse(
        r"training\.non_finite='continue' does not work with training\.dtype='float16'",
        training__non_finite="continue",
        training__dtype="float16",
    )


@pytest.mark.parametrize("activation", ["relu", "gelu", "helu", "identity"])
def test_options_of_another_activation(activation):
    refuse(
        rf"model\.negative_slope=0\.1 has no effect with model\.activation='{activation}'; set "
        "model.activation to 'leaky_relu' or 'learnable_leaky_relu', or leave the slope unset",
        model__activation=activation,
        model__negative_slope=0.1,
    )
    refuse(
        rf"model\.slope_sharing='model' has no effect with model\.activation='{activation}'",
        model__activation=activation,
        model__slope_sharing="model",
    )
    if activation != "helu":
        refuse(
            rf"model\.helu_margin=0\.5 has no effect with model\.activation='{activation}'",
            model__activation=activation,
            model__helu_margin=0.5,
        )


def test_a_fixed_slope_is_not_shared():
    refuse(
        r"slope_sharing='layer' has no effect with model\.activation='leaky_relu'",
        model__activation="leaky_relu",
        model__slope_sharing="layer",
    )


@pytest.mark.parametrize("key", ["rotary_fraction", "rotary_base"])
def test_rotary_options_of_learned_positions(key):
    refuse(
        rf"model\.{key}=0\.5 has no effect with model\.architecture='gpt2', whose positions are "
        "learned; use 'gpt_neox' or 'llama', or leave "
        rf"model\.{key} unset",
        **{f"model__{key}": 0.5},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer__schedule_power": 2.0},
            r"schedule_power=2\.0 has no effect with optimizer\.schedule='cosine'; set that key to "
            r"'polynomial', or set optimizer\.schedule_power to 1\.0",
        ),
        (
            {"optimizer__warmup_steps": 0, "optimizer__warmup_fraction": 0.1},
            r"warmup_fraction=0\.1 has no effect with optimizer\.warmup_steps=0; set that key to "
            r"None, or set optimizer\.warmup_fraction to 0\.05",
        ),
        (
            {
                "data__dataset": "text_files",
                "data__sources": "a.txt",
                "data__validation_split": "separate",
                "data__validation_source": "b.txt",
                "data__validation_fraction": 0.3,
            },
            r"validation_fraction=0\.3 has no effect with data\.validation_split='separate'; set",
        ),
        (
            {
                "data__validation_split": "field",
                "data__validation_field": "package",
                "data__validation_values": "json",
                "data__validation_fraction": 0.3,
            },
            r"validation_fraction=0\.3 has no effect with data\.validation_split='field' and named",
        ),
    ],
)
def test_a_key_that_another_makes_idle_is_refused(changes, message):
    refuse(message, **changes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model__embedding_dropout", 1.0, r"embedding_dropout=1\.0 is outside \[0\.0, 1\.0\)"),
        ("model__norm_epsilon", 0.0, r"norm_epsilon=0\.0 must be greater than 0"),
        ("model__init_std", -0.1, r"init_std=-0\.1 must be greater than 0"),
        ("model__mlp_dim", 0, "mlp_dim=0 must be at least 1"),
        ("optimizer__learning_rate", 0.0, r"learning_rate=0\.0 must be greater than 0"),
        ("optimizer__beta2", 1.0, r"beta2=1\.0 is outside \[0\.0, 1\.0\)"),
        ("optimizer__clip_norm", -1.0, r"clip_norm=-1\.0 must be at least 0"),
        ("optimizer__warmup_fraction", 1.5, r"warmup_fraction=1\.5 is outside \[0\.0, 1\.0\]"),
        ("optimizer__epsilon", 1e-46, r"epsilon=1e-46 cannot be held in float32, from 1\.2e-38 to"),
        ("optimizer__learning_rate", 1e39, r"learning_rate=1e\+39 cannot be held in float32"),
        ("optimizer__beta2", 1 - 1e-9, r"beta2=0\.999999999 is outside \[0\.0, 1\.0\)"),
        ("data__dataset", " ", r"data\.dataset=' ' names no dataset; leave it at 'python_stdlib'"),
        ("optimizer__final_learning_rate", 0.1, r"=0\.1 exceeds optimizer\.learning_rate=0\.001"),
        ("training__steps", 0, "steps=0 must be at least 1"),
        ("evaluation__every", -1, "evaluation.every=-1 must be at least 0"),
        ("checkpoint__keep", 0, "checkpoint.keep=0 must be at least 1"),
        ("parallel__cpu_devices", 0, "cpu_devices=0 must be at least 1"),
    ],
)
def test_values_out_of_range(name, value, message):
    refuse(message, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training__steps", 1e3, r"training\.steps=1000\.0 is of type float, expected int"),
        ("training__steps", "10", "training.steps='10' is of type str, expected int"),
        ("training__steps", True, "training.steps=True is of type bool, expected int"),
        ("model__mlp_bias", 1, "model.mlp_bias=1 is of type int, expected bool"),
        ("model__mlp_dim", 1.5, r"mlp_dim=1\.5 is of type float, expected int or None"),
        ("model__slope_sharing", 3, "expected one of layer, model, untied_global or None"),
        ("model__num_layers", None, "num_layers=None is of type NoneType, expected int"),
        ("model__activation", None, "expected one of evonorm_s0, gelu, "),
        ("optimizer__learning_rate", float("nan"), "learning_rate=nan is not a finite number"),
        ("optimizer__learning_rate", float("inf"), "learning_rate=inf is not a finite number"),
        ("optimizer__learning_rate", 10**400, "learning_rate=inf is not a finite number"),
        ("model__init_std", -(10**400), "init_std=-inf is not a finite number"),
    ],
)
def test_values_of_the_wrong_type(name, value, message):
    refuse(message, **{name: value})


def test_whole_numbers_count_as_floats():
    config = Config.from_dict(changed(optimizer__clip_norm=2))
    assert type(config.optimizer.clip_norm) is float


def test_keys_that_do_not_exist_or_lack():
    refuse("unknown key 'activatoin' in model; did you mean 'activation'", model__activatoin="relu")
    with pytest.raises(ConfigError, match="unknown key 'modle' in config; did you mean 'model'"):
        Config.from_dict(DEFAULT.to_dict() | {"modle": {}})
    with pytest.raises(ConfigError, match=r"config\.model must be a group of keys, not 3"):
        Config.from_dict(DEFAULT.to_dict() | {"model": 3})
    lacking = DEFAULT.to_dict()
    del lacking["optimizer"]["beta1"]
    with pytest.raises(ConfigError, match=r"optimizer lacks the key 'beta1'; start from configs/"):
        Config.from_dict(lacking)
    # Only a record of before a key existed may lack it, and only a key that came later.
    later = DEFAULT.to_dict()
    del later["training"]["loss_tile_rows"]
    with pytest.raises(ConfigError, match="training lacks the key 'loss_tile_rows'"):
        Config.from_dict(later)
    del later["removal"], later["model"]["attention_implementation"]
    explicit = changed(model__attention_implementation="explicit")
    assert Config.from_dict(later, recorded=True) == Config.from_dict(explicit)


def test_a_config_dict_and_an_unset_placeholder():
    assert Config.from_dict(ConfigDict(DEFAULT.to_dict())) == DEFAULT
    assert DEFAULT.model.mlp_dim is None
    assert DEFAULT.model.mlp_width == 4 * DEFAULT.model.embed_dim


def test_differences_name_the_keys():
    other = Config.from_dict(changed(model__activation="gelu", training__seed=7))
    assert differences(DEFAULT, other) == {
        "model.activation": ("relu", "gelu"),
        "training.seed": (0, 7),
    }
    assert differences(other, other) == {}


KEYS = [f"{section}__{key}" for section, keys in DEFAULT.to_dict().items() for key in keys]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 4)
    | st.floats()
    | st.sampled_from([8, 128, 1000, 1e-3, 0.1, 0.5])
    | st.text(max_size=8)
    | st.sampled_from(["gelu", "layernorm", "frozen_layernorm", "none", "model"])
    | st.lists(st.integers(), max_size=2)
)


def _options(annotation: object) -> list[object]:
    """The values that a key with this annotation names."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in _options(part)]


@st.composite
def _changes(draw: st.DrawFn) -> dict[str, object]:
    found = {}
    for name in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)):
        section, key = name.split("__")
        options = _options(typing.get_type_hints(type(getattr(DEFAULT, section)))[key])
        found[name] = draw(st.sampled_from(options) | VALUES if options else VALUES)
    return found


@settings(max_examples=400, deadline=None)
@given(_changes())
def test_any_value_is_taken_or_refused_by_name(values):
    try:
        config = Config.from_dict(changed(**values))
    except ConfigError as error:
        named = str(error)
        assert any(name.split("__")[1] in named for name in values)
    else:
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
