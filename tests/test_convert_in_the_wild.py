"""Checkpoints as hubs and training scripts leave them, against transformers itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from absl import logging as absl_logging
from safetensors import safe_open

import nfllm
from nfllm.convert import ConversionError, convert, load_checkpoint
from nfllm.convert.__main__ import main
from nfllm.data.tokenizer import END_OF_TEXT, bytes_tokenizer
from nfllm.model import Decoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

TOKENS_BT = np.arange(10)[None]
SIZES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32},
    "gpt_neox": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    },
}
CLASSES = {"gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM"}

# Of the hub's gpt2-medium, gpt2-xl, dialogpt, dolly-v2, polyglot-ko, pythia, gpt-neox-20b and of
# what transformers 2 to 5 write: bookkeeping, generation, other heads, training.
HARMLESS: dict[str, Any] = {
    "_attn_implementation": "eager",
    "_commit_hash": "0123456789abcdef",
    "_name": "gpt2",
    "_name_or_path": "gpt2",
    "_num_labels": 2,
    "architectures": ["GPT2ForSequenceClassification"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoTokenizer": "tokenization_mine.MyTokenizer"},
    "bad_words_ids": [[1]],
    "base_model_tp_plan": {},
    "bos_token_id": None,
    "chunk_size_feed_forward": 2,
    "classifier_dropout": 0.1,
    "cross_attention_hidden_size": 8,
    "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.Pipeline", "pt": []}},
    "decoder_start_token_id": 1,
    "diversity_penalty": 0.0,
    "do_sample": True,
    "early_stopping": False,
    "eos_token_id": [1, 2],
    "exponential_decay_length_penalty": None,
    "finetuning_task": "sst2",
    "forced_bos_token_id": 1,
    "generation_config": {"temperature": 0.5},
    "gradient_checkpointing": True,
    "id2label": {"0": "NEGATIVE"},
    "initializer_range": 0.0,
    "is_causal": True,
    "is_decoder": True,
    "is_encoder_decoder": True,
    "label2id": {"NEGATIVE": 0},
    "length_penalty": 1.0,
    "license": "apache-2.0",
    "max_length": 50,
    "min_length": 3,
    "name_or_path": "gpt2",
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 4,
    "num_labels": 5,
    "num_return_sequences": 1,
    "num_steps": "global_step320000",
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "output_scores": True,
    "pad_token_id": 3,
    "prefix": "x",
    "pretraining_tp": 1,
    "problem_type": None,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "rotary": False,
    "sep_token_id": None,
    "sliding_window": None,
    "suppress_tokens": [1],
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "temperature": 0.7,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": True,
    "tokenizer_class": "GPT2Tokenizer",
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "float16",
    "torchscript": False,
    "transformers_version": "2.1.0",
    "typical_p": 1.0,
    "unsloth_version": "2024.9",
    "use_bfloat16": True,
    "use_cache": False,
}
HARMLESS_OF: dict[str, dict[str, Any]] = {
    "gpt2": {
        "embd_pdrop": 1,
        "hidden_size": 16,
        "max_position_embeddings": 32,
        "n_ctx": 1024,
        "n_special": 0,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "predict_special_tokens": True,
        "reorder_and_upcast_attn": True,
        "summary_first_dropout": 0.1,
        "summary_use_proj": True,
    },
    "gpt_neox": {
        "add_cross_attention": True,
        "attention_probs_dropout_prob": 0,
        "hidden_dropout_prob": 0,
        "rope_scaling": None,
        "rope_theta": 10_000,
        "rotary_emb_base": 10_000,
        "rotary_ndims": 4,
        "rotary_pct": 0.25,
    },
}
# What transformers computes otherwise, or cannot load.
HARMFUL_OF: dict[str, dict[str, Any]] = {
    "gpt2": {
        "hidden_size": 32,
        "is_causal": False,
        "max_position_embeddings": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "scale_attn_by_inverse_layer_idx": True,
        "scale_attn_weights": False,
    },
    "gpt_neox": {
        "attention_bias": False,
        "is_causal": False,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "use_parallel_residual": False,
    },
}


def tiny(kind: str, **changes: Any) -> Any:
    """A model of transformers, every parameter normal."""
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=61, bos_token_id=0, eos_token_id=0, **{**SIZES[kind], **changes}
    )
    generator = torch.Generator().manual_seed(0)
    model = getattr(transformers, CLASSES[kind])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture(scope="module", params=SIZES)
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny(request.param).save_pretrained(folder)
    return folder


def with_keys(folder: Path, copy: Path, **keys: Any) -> Path:
    """The checkpoint under `copy`, with some attributes set."""
    copy.mkdir()
    (copy / "model.safetensors").symlink_to(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | keys
    (copy / "config.json").write_text(json.dumps(values))
    return copy


def our_logits(folder: Path) -> np.ndarray:
    found = load_checkpoint(folder)
    model = Decoder(found.config, found.vocab_size)
    return np.asarray(model.apply({"params": found.params}, jnp.asarray(TOKENS_BT)))


def their_logits(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS_BT)).logits.numpy()


def kind_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_the_list_is_long():
    assert all(len({**HARMLESS, **HARMLESS_OF[kind]}) >= 70 for kind in SIZES)


@pytest.mark.slow
def test_attributes_that_transformers_passes_over(saved, tmp_path):
    """One at a time: transformers' logits stay as they are, and so does what is loaded here."""
    base, plain = their_logits(saved), load_checkpoint(saved)
    np.testing.assert_allclose(our_logits(saved), base, rtol=0, atol=1e-5)
    for key, value in {**HARMLESS, **HARMLESS_OF[kind_of(saved)]}.items():
        folder = with_keys(saved, tmp_path / key, **{key: value})
        np.testing.assert_array_equal(their_logits(folder), base, err_msg=key)
        found = load_checkpoint(folder)
        assert found.config == plain.config, key
        jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


def test_attributes_that_change_the_logits_are_refused_by_name(saved, tmp_path):
    base = their_logits(saved)
    for key, value in HARMFUL_OF[kind_of(saved)].items():
        folder = with_keys(saved, tmp_path / key, **{key: value})
        try:
            changed = np.abs(their_logits(folder) - base).max()
        except (RuntimeError, ImportError):  # sizes that do not fit, a package that is not there
            changed = np.inf
        assert changed > 1e-4, key
        message = "bias' of shape" if key == "attention_bias" else key
        with pytest.raises(ConversionError, match=message):
            load_checkpoint(folder)


def test_only_the_alias_is_there(tmp_path):
    """As transformers, which keeps both names of an attribute alike."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    names = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
    }
    values = {names.get(name, name): value for name, value in values.items()}
    (tmp_path / "config.json").write_text(json.dumps(values))
    np.testing.assert_allclose(our_logits(tmp_path), their_logits(tmp_path), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
def test_a_name_that_only_some_versions_read_is_refused_where_it_matters(key, tmp_path):
    tiny("gpt_neox").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**values, key: 0.5}))
    with pytest.raises(ConversionError, match=rf"contradicts itself about rotary .*default.*{key}"):
        load_checkpoint(tmp_path)


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def test_notes_are_named_in_one_warning(saved, tmp_path, warnings):
    load_checkpoint(with_keys(saved, tmp_path / "copy", wandb_run="x", num_steps=7, max_length=3))
    assert "ignored, as by transformers: wandb_run, num_steps" in warnings.text
    assert "max_length" not in warnings.text


def test_with_code_of_its_own_unknown_attributes_are_refused(saved, tmp_path, warnings):
    own = {"AutoModelForCausalLM": "modeling_mine.MyModel"}
    load_checkpoint(with_keys(saved, tmp_path / "alone", auto_map=own))
    assert "names its own code (auto_map), which is not run" in warnings.text
    folder = with_keys(saved, tmp_path / "both", auto_map=own, wandb_run="x")
    with pytest.raises(ConversionError, match="wandb_run='x' is not understood"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("noted", [True, False])
def test_tied_tensors_that_are_stored_once(kind, noted, tmp_path):
    """`save_model` keeps one name and notes the other; transformers takes either name alone."""
    model = tiny(kind, tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    safetensors_torch.save_model(model, str(file), metadata={"format": "pt"})
    with safe_open(file, "numpy") as opened:
        names, notes = set(opened.keys()), opened.metadata()
    assert notes.keys() - {"format"} == model.state_dict().keys() - names
    if not noted:
        tensors = {name: x for name, x in model.state_dict().items() if name in names}
        safetensors_torch.save_file(tensors, file, metadata={"format": "pt"})
    np.testing.assert_allclose(our_logits(tmp_path), their_logits(tmp_path), rtol=0, atol=1e-5)


@pytest.mark.parametrize("untied", [True, False])
def test_only_the_head_is_stored(untied, tmp_path):
    """Tied, it is the table too; untied, the table is missing, and a note about it counts."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    if untied:
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False}))
    table = "transformer.wte.weight"
    tensors = {name: x.clone() for name, x in model.state_dict().items() if name != table}
    tensors["lm_head.weight"] = model.lm_head.weight.detach().clone()
    file = tmp_path / "model.safetensors"
    safetensors_torch.save_file(tensors, file, metadata={"format": "pt"})
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS_BT)).logits.numpy()
    if untied:
        with pytest.raises(ConversionError, match=f"lacks the tensor '{table}'"):
            load_checkpoint(tmp_path)
        noted = {"format": "pt", table: "lm_head.weight"}
        safetensors_torch.save_file(tensors, file, metadata=noted)
    np.testing.assert_allclose(our_logits(tmp_path), expected, rtol=0, atol=1e-5)


def test_heads_beside_the_language_models(saved, tmp_path):
    model = tiny(kind_of(saved))
    model.config.save_pretrained(tmp_path)
    others = {"v_head.summary.weight": torch.ones(1, 16), "multiple_choice_head.x": torch.ones(1)}
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    file = tmp_path / "model.safetensors"
    safetensors_torch.save_file({**tensors, **others}, file, metadata={"format": "pt"})
    np.testing.assert_allclose(our_logits(tmp_path), their_logits(tmp_path), rtol=0, atol=1e-5)


def test_a_tokenizer_with_more_ids_than_the_model(saved, tmp_path):
    folder = with_keys(saved, tmp_path / "copy")
    bytes_tokenizer().save(folder / "tokenizer.json")
    message = convert(folder, tmp_path / "run")
    assert "has ids up to 256, beyond the model's table of 61" in message
    run = nfllm.load_run(tmp_path / "run")
    ids = run.tokenizer.encode("alpha")
    with pytest.raises(ValueError, match=r"id 97 at \[0, 0\] is outside .* table of 61 ids"):
        nfllm.capture(run.model, run.params, ids[None])
    assert "beyond the model's table of 61" in convert(tmp_path / "run", tmp_path / "back")


@pytest.mark.parametrize("end", [None, END_OF_TEXT])
def test_a_tokenizer_that_cannot_be_used_goes_along(saved, end, tmp_path, capsys):
    folder = with_keys(saved, tmp_path / "copy")
    vocabulary = {"a": 0} if end is None else {"a": 0, end: 1}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.save(str(folder / "tokenizer.json"))
    assert main([str(folder), str(tmp_path / "run")]) == 0
    assert main([str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    told = capsys.readouterr().out.count("no end-of-text token")
    assert told == (2 if end is None else 0)
    written = tmp_path / "back" / "tokenizer.json"
    assert written.read_bytes() == (folder / "tokenizer.json").read_bytes()
