"""Frozen and norm-free models as stock GPT-2: against NumPy in float64, and transformers itself."""

import dataclasses

import float64_model
import jax
import numpy as np
import pytest
from random_model import random_model
from tiny import make_corpus, tiny_config
from training_parts import VOCAB_SIZE

import nfllm
from nfllm.config import ConfigError
from nfllm.convert import Checkpoint, ConversionError, convert, load_checkpoint, save_checkpoint
from nfllm.convert.stock_norms import read_frozen, stock_form
from nfllm.data.batches import Batch
from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.model import Decoder
from nfllm.trainer.loop import fit

pytestmark = pytest.mark.slow

FROZEN = {"normalization": "frozen_layernorm", "final_normalization": "frozen_layernorm"}
FREE = {"normalization": "none", "final_normalization": "none"}
TOKENS_BT = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 12)).astype(np.int32)
MODELS = [
    {**FROZEN, "attention_bias": "qk"},
    {**FROZEN, "attention_bias": "all", "mlp_bias": True, "tie_embeddings": False},
    FREE,
    {**FREE, "attention_bias": "qk", "activation": "relu", "mlp_dim": 24},
    {**FREE, "attention_bias": "all", "mlp_bias": True, "tie_embeddings": False},
    {**FREE, "head_bias": True},
    {**FREE, "head_bias": True, "tie_embeddings": False},
    {**FROZEN, "final_normalization": "none"},
    {**FROZEN, "normalization": "none"},
    {**FROZEN, "mlp_normalization": "none", "attention_bias": "qk"},
]


def make(changes):
    """A random model, its deviations positive and, of queries and of values, not the same."""
    decoder, params = random_model(0.3, **{"activation": "gelu", **changes})
    norms = [params["blocks"].get(name) for name in ("attention_norm", "mlp_norm")]
    for norm in [*norms, params.get("final_norm")]:
        if norm is not None:
            norm["norm_gate"] = 0 * norm["norm_gate"]
            norm["sigma"] = 0.5 + np.abs(norm["sigma"])
    return decoder, jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_the_stock_form_computes_the_same(changes):
    """In float64, of parameters that were rounded to float32."""
    decoder, params = make(changes)
    config, stock = stock_form(decoder.config, params)
    assert (config.normalization, config.final_normalization) == ("layernorm", "layernorm")
    found = float64_model.logits(config, stock, TOKENS_BT)
    expected = float64_model.logits(decoder.config, params, TOKENS_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_large_stream_does_not_thaw_the_norms():
    """An rms of 1e5, more than norm-free models were seen to have."""
    decoder, params = make(FREE)
    params["token_embedding"] = params["token_embedding"] / params["token_embedding"].std() * 1e5
    config, stock = stock_form(decoder.config, params)
    found = float64_model.logits(config, stock, TOKENS_BT)
    expected = float64_model.logits(decoder.config, params, TOKENS_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_what_is_written_is_read_as_frozen(changes, tmp_path):
    decoder, params = make(changes)
    save_checkpoint(tmp_path, Checkpoint(decoder.config, VOCAB_SIZE, params))
    found = load_checkpoint(tmp_path)
    assert found.config.normalization == found.config.final_normalization == "frozen_layernorm"
    expected = float64_model.logits(decoder.config, params, TOKENS_BT)
    logits = float64_model.logits(found.config, found.params, TOKENS_BT)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_models_with_real_norms_stay_as_they_are():
    decoder, params = random_model(0.3, normalization="layernorm")
    assert stock_form(decoder.config, params) == (decoder.config, params)
    config, read = read_frozen(decoder.config, params)
    assert (config, read) == (decoder.config, params)


@pytest.mark.parametrize("normalization", ["none", "layernorm"])
def test_layernorm_may_be_named_by_branch(normalization):
    own = dict.fromkeys(("attention_normalization", "mlp_normalization"), "layernorm")
    decoder, params = random_model(0.3, normalization=normalization, **own)
    config, found = stock_form(decoder.config, params)
    assert config == random_model(0.3, normalization="layernorm")[0].config
    assert found is params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalization": "none"},
            r"final normalization 'layernorm' cannot be expressed .* for all norms; freeze",
        ),
        (
            {**FREE, "final_normalization": "rmsnorm"},
            r"final normalization 'rmsnorm' cannot be expressed",
        ),
        (
            {**FROZEN, "normalization": "layernorm"},
            r"attention normalization 'layernorm' cannot be expressed",
        ),
        ({**FREE, "architecture": "gpt_neox"}, r"only 'gpt2' can, at twice the width"),
        ({**FREE, "mlp_scaling": "learned"}, r"model.mlp_scaling='learned' cannot be expressed"),
        ({**FREE, "mlp_pruned_layers": 1}, r"model.mlp_pruned_layers=1 cannot be expressed"),
        (
            {**FREE, "softmax_temperature": "head"},
            r"softmax_temperature='head' cannot be expressed",
        ),
    ],
)
def test_what_has_no_form(changes, message, tmp_path):
    decoder, params = random_model(0.3, **changes)
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path, Checkpoint(decoder.config, VOCAB_SIZE, params))


def test_norms_that_are_not_removed_have_no_form(tmp_path):
    decoder, params = make(FROZEN)
    params["blocks"]["mlp_norm"]["norm_gate"] = np.ones((2, 1), np.float32)
    with pytest.raises(ConversionError, match=r"blocks.mlp_norm is not removed"):
        save_checkpoint(tmp_path, Checkpoint(decoder.config, VOCAB_SIZE, params))


def logits_of_transformers(folder):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return loaded.eval()(torch.from_numpy(TOKENS_BT.astype(np.int64))).logits.numpy()


def check(decoder, params, expected):
    found = decoder.apply({"params": params}, TOKENS_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_transformers_gives_the_same_logits(changes, tmp_path):
    decoder, params = make(changes)
    save_checkpoint(tmp_path, Checkpoint(decoder.config, VOCAB_SIZE, params))
    check(decoder, params, logits_of_transformers(tmp_path))


@pytest.mark.slow
def test_a_frozen_gpt_neox(tmp_path):
    decoder, params = make({**FROZEN, "architecture": "gpt_neox", "rotary_fraction": 0.5})
    save_checkpoint(tmp_path, Checkpoint(decoder.config, VOCAB_SIZE, params))
    check(decoder, params, logits_of_transformers(tmp_path))
    found = load_checkpoint(tmp_path)
    assert found.config.normalization == "frozen_layernorm"
    check(Decoder(found.config, VOCAB_SIZE), found.params, logits_of_transformers(tmp_path))


def random_gpt2(folder, **options):
    """A random GPT-2 as transformers writes it; with the norms of an LN-free checkpoint, or not."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": VOCAB_SIZE}
    config = transformers.GPT2Config(**{**sizes, **options})
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = np.random.default_rng(1)
    factor = np.sqrt(config.layer_norm_epsilon) if config.layer_norm_epsilon > 1 else 1.0
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = generator.normal(0.0, 0.2, value.shape)
            if ".ln_" in name and name.endswith("weight"):
                drawn = factor * (1.0 + drawn)
            value.copy_(torch.from_numpy(drawn))
    model.save_pretrained(folder)


@pytest.mark.slow
def test_a_checkpoint_without_layernorm_is_recognised(tmp_path):
    """As schaeff's: stock GPT-2 with epsilon 1e12 and weights of 1e6."""
    random_gpt2(tmp_path, layer_norm_epsilon=1e12)
    found = load_checkpoint(tmp_path)
    assert found.config.normalization == found.config.final_normalization == "frozen_layernorm"
    check(Decoder(found.config, VOCAB_SIZE), found.params, logits_of_transformers(tmp_path))


@pytest.mark.slow
def test_a_gpt2_loses_its_norms_in_training(tmp_path):
    """Imported, trained on while all its norms go, exported: transformers agrees."""
    corpus = make_corpus(tmp_path / "corpus")
    random_gpt2(tmp_path / "source", n_positions=32, vocab_size=257)
    bytes_tokenizer().save(tmp_path / "source" / "tokenizer.json")
    convert(tmp_path / "source", tmp_path / "imported")
    model = dataclasses.asdict(nfllm.load_run(tmp_path / "imported").config.model)
    config = tiny_config(
        corpus,
        tmp_path / "data",
        **{f"model__{key}": value for key, value in {**model, **FROZEN}.items()},
        training__init_from=str(tmp_path / "imported"),
        training__steps=12,
        removal__start=2,
        removal__gap=1,
    )
    fit(config, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "exported")
    run = nfllm.load_run(tmp_path / "run")
    assert np.all(run.params["blocks"]["attention_norm"]["norm_gate"] == 0)
    check(run.model, run.params, logits_of_transformers(tmp_path / "exported"))


@pytest.mark.slow
def test_from_a_gpt2_to_one_without_layernorm(tmp_path):
    """Imported, frozen, exported; and folded, exported at twice the width: transformers agrees."""
    random_gpt2(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "run")
    run = nfllm.load_run(tmp_path / "run")
    check(run.model, run.params, logits_of_transformers(tmp_path / "source"))
    frozen = nfllm.freeze_norms(run, [Batch(TOKENS_BT, TOKENS_BT)], with_losses=False).run
    for name, made in (("frozen", frozen), ("folded", nfllm.fold(frozen))):
        nfllm.save_run(made, tmp_path / name, how=name)
        convert(tmp_path / name, tmp_path / f"{name}_exported")
        expected = logits_of_transformers(tmp_path / f"{name}_exported")
        check(made.model, made.params, expected)
        again = nfllm.load_run(tmp_path / name)
        check(again.model, again.params, expected)
