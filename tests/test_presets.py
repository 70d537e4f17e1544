"""The presets: the published recipe, every variant of it, and how they load."""

import dataclasses
import json
import runpy
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from configs import gpt2_codeparrot, norm_free, pythia70m_codeparrot
from configs import recipes as grid_of_recipes
from nfllm.config import Config, ConfigError, TrainingConfig
from nfllm.config.recipes import RECIPES, recipe_note
from nfllm.model import Decoder
from nfllm.papers.variants import AERO_VARIANTS, VARIANTS

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = {"gpt2_codeparrot": gpt2_codeparrot, "pythia70m_codeparrot": pythia70m_codeparrot}
PUBLISHED = json.loads(resources.files("nfllm.papers").joinpath("published.json").read_text())


def preset(name: str, *variant: str) -> Config:
    return Config.from_dict(PRESETS[name].get_config(*variant))


def parameters(config: Config) -> int:
    model = Decoder(config.model, config.data.vocab_size)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_BT)["params"])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_there_are_nine_variants():
    assert list(VARIANTS) == [
        "sm+ln+g",
        "sm+ln+r",
        "sm+ln",
        "sm+g",
        "sm+r",
        "sm",
        "leaky",
        "learnable_layer",
        "learnable_global",
    ]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("variant", "normalization", "activation", "slope", "sharing"),
    [
        ("sm+ln+g", "layernorm", "gelu", None, None),
        ("sm+ln+r", "layernorm", "relu", None, None),
        ("sm+ln", "layernorm", "identity", None, None),
        ("sm+g", "none", "gelu", None, None),
        ("sm+r", "none", "relu", None, None),
        ("sm", "none", "identity", None, None),
        ("leaky", "none", "leaky_relu", 0.1, None),
        ("learnable_layer", "none", "learnable_leaky_relu", 0.01, "layer"),
        ("learnable_global", "none", "learnable_leaky_relu", 0.01, "untied_global"),
    ],
)
def test_variant(name, variant, normalization, activation, slope, sharing):
    model = preset(name, variant).model
    found = (model.normalization, model.activation, model.negative_slope, model.slope_sharing)
    assert found == (normalization, activation, slope, sharing)
    assert (model.final_normalization, model.qk_normalization) == ("layernorm", "none")
    # Nothing but the variant differs.
    base = preset(name, "sm+ln+g").to_dict()
    changed = preset(name, variant).to_dict()
    keys = ("normalization", "activation", "negative_slope", "slope_sharing")
    changed["model"] |= {key: base["model"][key] for key in keys}
    assert changed == base


def test_gpt2_is_the_published_recipe():
    config, recipe = preset("gpt2_codeparrot"), PUBLISHED["recipe"]
    model = config.model
    assert {
        "layers": model.num_layers,
        "heads": model.num_heads,
        "width": model.embed_dim,
        "context": model.context_length,
        "init_std": model.init_std,
        "embedding_dropout": model.embedding_dropout,
    } == recipe["model"]
    assert (model.init_std_scaling, model.attention_bias, model.mlp_bias) == ("none", "qk", False)
    assert (model.attention_dropout, model.residual_dropout) == (0.0, 0.0)
    training = config.training
    assert training.gradient_accumulation == recipe["gradient_accumulation"]
    assert training.batch_size == recipe["micro_batch"] * recipe["gradient_accumulation"]
    assert training.seed == recipe["seed"]
    assert recipe["optimizer_steps"] == f"about {training.steps}"
    assert recipe["precision"] == f"{training.dtype.replace('float', 'fp')} autocast"
    optimizer = config.optimizer
    assert recipe["optimizer"] == (
        "AdamW (transformers.AdamW), lr 1e-3, betas 0.9/0.999, eps 1e-8, weight decay 0.1, clip 1.0"
    )
    assert (optimizer.variant, optimizer.learning_rate) == ("hf_adamw", 1e-3)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)
    assert recipe["schedule"] == (
        "linear warmup over 5% of steps, then linear (polynomial power 1) to 1e-7"
    )
    assert (optimizer.schedule, optimizer.schedule_power) == ("polynomial", 1.0)
    assert (optimizer.warmup_steps, optimizer.warmup_fraction) == (None, 0.05)
    assert optimizer.final_learning_rate == 1e-7
    # Of the released code rather than the paper.
    assert optimizer.warmup_from_zero
    assert optimizer.decay_slopes
    assert optimizer.accumulation_weighting == "micro_batch"
    data = config.data
    assert data.split == f"train[:{recipe['train_documents']}]"
    assert data.validation_source == f"validation[:{recipe['valid_documents']}]"
    assert recipe["tokenizer"].endswith(f", {data.vocab_size} BPE")
    assert (data.dataset, data.window, data.mask_end_of_text) == ("codeparrot", "documents", True)


def test_pythia_differs_in_its_architecture_only():
    gpt2, pythia = preset("gpt2_codeparrot").to_dict(), preset("pythia70m_codeparrot").to_dict()
    changed = {key: value for key, value in pythia["model"].items() if value != gpt2["model"][key]}
    assert changed == {
        "architecture": "gpt_neox",
        "num_layers": 6,
        "num_heads": 8,
        "embed_dim": 512,
        "attention_bias": "all",
        "mlp_bias": True,
        "rotary_fraction": 0.25,
        "embedding_dropout": 0.0,
    }
    assert pythia | {"model": gpt2["model"]} == gpt2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Twelve blocks of 12 D² and the query and key biases; norms; tables of 50000 and 128 rows.
        (
            "gpt2_codeparrot",
            12 * (12 * 768**2 + 2 * 768 + 4 * 768) + 2 * 768 + (50_000 + 128) * 768,
        ),
        # Six blocks of 12 D² and biases of 4 D and 5 D; norms; two tables of 50000 rows.
        (
            "pythia70m_codeparrot",
            6 * (12 * 512**2 + 9 * 512 + 4 * 512) + 2 * 512 + 2 * 50_000 * 512,
        ),
    ],
)
def test_parameter_counts(name, expected):
    assert parameters(preset(name, "sm+ln+g")) == expected


@pytest.mark.parametrize(
    ("name", "operations"), [("gpt2_codeparrot", 1.6e18), ("pythia70m_codeparrot", 6e17)]
)
def test_operations_told_in_the_file(name, operations):
    """Six a token and parameter, without the embedding where the head has a table of its own."""
    config = preset(name)
    tables = 0 if config.model.ties_embeddings else config.data.vocab_size * config.model.embed_dim
    tokens = config.training.steps * config.training.batch_size * config.model.context_length
    total = 6 * (parameters(config) - tables) * tokens
    assert operations == pytest.approx(total, rel=0.1)
    assert f"{operations:.2g}".replace("+", "") in PRESETS[name].__doc__


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("gpt2_codeparrot", "gpt2_T128"),
        ("pythia70m_codeparrot", "pythia70m_T128"),
        ("pythia70m_codeparrot", "pythia70m_T256"),
    ],
)
def test_scores_told_in_the_file_are_the_published_ones(name, table):
    doc = PRESETS[name].__doc__
    assert "published (not measured with this code)" in doc
    for row, value in PUBLISHED["perplexity"][table].items():
        if isinstance(value, float):
            assert row.lower() in doc
            assert f"{value:.3f}" in doc, row


# Of ml_collections' own way to load the file.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_config_flags_load_a_variant_and_change_a_key(name):
    arguments = [
        "train.py",
        f"--config={CONFIGS / name}.py:sm+ln+g",
        "--config.model.num_layers=2",
        "--config.model.activation=learnable_leaky_relu",
        "--config.model.slope_sharing=model",
    ]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    config = Config.from_dict(holder.value)
    assert (config.model.num_layers, config.model.normalization) == (2, "layernorm")
    assert config.model.slope_sharing == "model"


@pytest.mark.parametrize("name", PRESETS)
def test_files_load_by_path_and_without_a_variant(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    get_config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]
    assert Config.from_dict(get_config()) == preset(name, "SM+R")


@pytest.mark.parametrize("name", PRESETS)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ConfigError, match=r"unknown variant 'sm\+gg'; did you mean 'sm\+g'\?"):
        preset(name, "sm+gg")


@pytest.mark.parametrize("name", norm_free.PARTS)
def test_norm_free_parts_are_norm_free_as_their_parts_declare(name):
    assert Config.from_dict(norm_free.get_config(name)).model.statistics == "norm-free"


@pytest.mark.parametrize(
    ("name", "alphas", "gain"),
    [
        ("dyt", (0.5, 0.5, 0.5), "none"),
        ("dyt_7b", (0.8, 0.2, 0.2), "learned"),
        ("dyt_13b", (0.6, 0.15, 0.15), "learned"),
        ("dyt_70b", (0.2, 0.05, 0.05), "learned"),
        ("derf_gpt2", (1.0, 1.0, 1.0), "learned"),
        ("dyt_overfitting", (2.0, 2.0, 2.0), "none"),
    ],
)
def test_published_starts_of_alpha(name, alphas, gain):
    model = Config.from_dict(norm_free.get_config(name)).model
    assert tuple(model.alpha_at(site) for site in ("attention", "mlp", "final")) == alphas
    assert model.embedding_scale == gain


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_changed_is_named(name):
    """Every key of it, and no other."""
    config = Config(training=TrainingConfig(recipe=name)).to_dict()
    for key, value in {**RECIPES[name], "training.steps": 7}.items():
        section, _, own = key.partition(".")
        config[section][own] = value
    whole = Config.from_dict(config)
    assert recipe_note(whole) == f"recipe {name} as published"
    key, value = next((k, v) for k, v in RECIPES[name].items() if isinstance(v, float))
    section, _, own = key.partition(".")
    changed = dataclasses.replace(getattr(whole, section), **{own: 0.3})
    note = recipe_note(dataclasses.replace(whole, **{section: changed}))
    assert note == f"recipe {name} changed: {key}=0.3 (published: {value!r})"


def test_recipes_by_their_names():
    for name in norm_free.PARTS.keys() - {"relu"}:
        assert recipe_note(Config.from_dict(norm_free.get_config(name))) == (
            f"recipe {name} as published"
        )
    assert recipe_note(Config.from_dict(norm_free.get_config("relu"))) == ""
    for key, value in AERO_VARIANTS["sm(t)+scfuffn"].items():
        assert RECIPES["aero"][f"model.{key}"] == value
    for key, value in grid_of_recipes.RECIPES["op_block"].items():
        assert key == "activation" or RECIPES["op_block"][f"model.{key}"] == value
    with pytest.raises(ConfigError, match=r"unknown recipe 'hleu' in training.recipe; did you mea"):
        TrainingConfig(recipe="hleu")


def test_helu_for_small_models():
    assert Config.from_dict(norm_free.get_config("helu")).model.margin == 0.001
    with pytest.raises(ConfigError, match=r"unknown part 'derff'; did you mean 'derf'\?"):
        norm_free.get_config("derff")
