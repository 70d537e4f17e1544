"""Names of parts: by site, what they declare, and where that is said."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from training_parts import small_config

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.overrides import override_value
from nfllm.convert.foreign import LAYERNORM, check_form
from nfllm.model import Decoder
from nfllm.private_cost import DecoderShape, count_operations
from nfllm.report.runs import notation

SITES = {"attention_normalization": "attention_norm", "mlp_normalization": "mlp_norm"}


def model(**changes) -> ModelConfig:
    return dataclasses.replace(small_config().model, **changes)


@pytest.mark.parametrize(("key", "module"), SITES.items())
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_each_site_has_its_own_normalization(key, module, architecture):
    config = model(architecture=architecture, rotary_fraction=None, **{key: "rmsnorm"})
    decoder = Decoder(config, 11)
    tokens_BT = jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), tokens_BT)["params"])
    norms = {name: set(leaves) for name, leaves in params["blocks"].items() if "norm" in name}
    assert norms == {module: {"scale"}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "norm-free, final normalised"),
        ({"final_normalization": "derf"}, "norm-free"),
        ({"normalization": "dyt", "final_normalization": "none"}, "norm-free"),
        ({"attention_normalization": "rmsnorm"}, "normalised"),
        ({"normalization": "layernorm", "mlp_normalization": "none"}, "normalised"),
        (
            {
                "normalization": "layernorm",
                "attention_normalization": "none",
                "mlp_normalization": "dyt",
                "final_normalization": "none",
            },
            "norm-free",
        ),
        ({"qk_normalization": "layernorm", "final_normalization": "none"}, "normalised"),
        # What no block has is not counted.
        (
            {
                "mlp": "none",
                "activation": "identity",
                "attention_normalization": "none",
                "normalization": "layernorm",
                "final_normalization": "none",
            },
            "norm-free",
        ),
    ],
)
def test_a_model_is_what_its_parts_declare(changes, expected):
    assert model(**changes).statistics == expected


def test_a_normalization_by_site_is_in_the_name_and_in_the_price():
    config = model(normalization="layernorm", mlp_normalization="none", activation="gelu")
    both = model(normalization="layernorm", mlp_normalization="layernorm")
    names = [notation(dataclasses.replace(small_config(), model=m)) for m in (config, both)]
    assert names == ["SM+layernorm|none+G", "SM+LN+R"]
    names = [o.name for o in count_operations(DecoderShape.from_config(config, 11), 4)]
    assert "attention normalization (layernorm)" in names
    assert not [name for name in names if name.startswith("MLP normalization")]


def test_what_has_no_form_elsewhere_is_refused_by_its_key():
    whole = {"normalization": "layernorm", "activation": "gelu"}
    check_form(model(**whole), some=LAYERNORM)
    for key in ("attention_normalization", "mlp_normalization", "embedding_scale"):
        value = "learned" if key == "embedding_scale" else "rmsnorm"
        with pytest.raises(ConfigError, match=rf"model\.{key}='{value}' cannot be expr"):
            check_form(model(**whole, **{key: value}), some=LAYERNORM)


def test_a_site_that_is_not_there_has_no_normalization():
    with pytest.raises(ConfigError, match=r"model\.mlp_normalization='dyt' has no effect"):
        model(mlp="none", activation="identity", mlp_normalization="dyt")


def test_names_are_read_from_a_command_line():
    assert override_value("model.mlp_normalization", "none") == "none"
    assert override_value("model.mlp_normalization", "None") is None
    assert override_value("model.attention_normalization", "rmsnorm") == "rmsnorm"
    assert override_value("model.normalization", "none") == "none"
