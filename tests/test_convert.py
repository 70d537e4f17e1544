"""Checkpoints of transformers in and out: identity on every tensor, and refusal by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_code import from_authors, to_authors
from safetensors.numpy import load_file, save_file
from test_options import MODEL_KEYS

import nfllm
from nfllm.config import Config, ConfigError, ModelConfig, get_config
from nfllm.convert import (
    Checkpoint,
    ConversionError,
    convert,
    gpt2,
    gpt_neox,
    llama,
    load_checkpoint,
    save_checkpoint,
)
from nfllm.convert.__main__ import main
from nfllm.convert.foreign import Attributes
from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.model import Decoder
from nfllm.model.softmax import ATTENTION_TRANSFORMS
from nfllm.report import write_report
from nfllm.rundir import RunError, read_record, write_record

RECORDINGS = Path(__file__).parent / "recordings"
SAVED = [
    "gpt2",
    "gpt2_untied_relu",
    "gpt_neox",
    "gpt_neox_tied_unbiased",
    "llama_grouped_biased",
    "llama_tied_relu",
]
DEFAULT = Config.from_dict(get_config()).model
LAYERNORM = dataclasses.replace(
    DEFAULT, num_layers=2, num_heads=2, embed_dim=16, context_length=6, normalization="layernorm"
)
LLAMA = dataclasses.replace(
    DEFAULT,
    architecture="llama",
    num_layers=2,
    num_heads=2,
    embed_dim=16,
    context_length=6,
    normalization="rmsnorm",
    final_normalization="rmsnorm",
    mlp="gated",
    activation="silu",
)


@pytest.fixture
def source(tmp_path: Path):
    """Copies a recorded checkpoint to where a test may change it."""

    def copy(case: str, **attributes: object) -> Path:
        folder = tmp_path / case
        folder.mkdir()
        for file in ("config.json", "model.safetensors"):
            shutil.copy(RECORDINGS / case / file, folder)
        values = json.loads((folder / "config.json").read_text())
        values = {name: x for name, x in (values | attributes).items() if x is not DROPPED}
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return copy


DROPPED = object()


def random_params(config: ModelConfig, vocab_size: int) -> dict:
    """Parameters of the model's shapes, all of them random."""
    model = Decoder(config, vocab_size)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens_BT)["params"])
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_same_tensors(first: Path, second: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype == np.float32
        np.testing.assert_array_equal(tensor, two[name], err_msg=name)


@pytest.mark.parametrize("case", SAVED)
def test_round_trip_is_the_identity_on_every_tensor(case, tmp_path):
    checkpoint = load_checkpoint(RECORDINGS / case)
    save_checkpoint(tmp_path, checkpoint)
    assert_same_tensors(RECORDINGS / case, tmp_path)
    again = load_checkpoint(tmp_path)
    assert (again.config, again.vocab_size) == (checkpoint.config, checkpoint.vocab_size)


@settings(max_examples=25, deadline=None)
@given(
    architecture=st.sampled_from(["gpt2", "gpt_neox", "llama"]),
    num_layers=st.integers(1, 3),
    num_heads=st.integers(1, 4),
    multi_query=st.booleans(),
    half_head=st.integers(1, 3),
    mlp_dim=st.integers(1, 9),
    context_length=st.integers(2, 9),
    vocab_size=st.integers(1, 9),
    tied=st.booleans(),
)
def test_our_parameters_come_back(
    tmp_path_factory,
    architecture,
    num_layers,
    num_heads,
    multi_query,
    half_head,
    mlp_dim,
    context_length,
    vocab_size,
    tied,
):
    is_llama = architecture == "llama"
    config = dataclasses.replace(
        LLAMA if is_llama else LAYERNORM,
        architecture=architecture,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=1 if is_llama and multi_query else None,
        embed_dim=2 * half_head * num_heads,
        mlp_dim=mlp_dim,
        context_length=context_length,
        attention_bias="all",
        mlp_bias=True,
        tie_embeddings=tied,
        rotary_fraction=1.0 if architecture == "gpt_neox" else None,
    )
    params = random_params(config, vocab_size)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, Checkpoint(config, vocab_size, params))
    again = load_checkpoint(folder)
    assert again.vocab_size == vocab_size
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parametrize("bias", ["none", "qk"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_missing_biases_are_written_as_zeros(architecture, bias, tmp_path):
    config = dataclasses.replace(
        LAYERNORM,
        architecture=architecture,
        attention_bias=bias,
        rotary_fraction=0.5 if architecture == "gpt_neox" else None,
    )
    checkpoint = Checkpoint(config, 7, random_params(config, 7))
    save_checkpoint(tmp_path, checkpoint)
    again = load_checkpoint(tmp_path)
    assert again.config.mlp_bias
    tokens_BT = jnp.asarray([[1, 6, 2, 0, 3]])
    logits, expected = (
        Decoder(c.config, c.vocab_size).apply({"params": c.params}, tokens_BT)
        for c in (again, checkpoint)
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_import_and_export_through_run_directories(source, tmp_path, capsys):
    folder = source("gpt_neox")
    tokenizer = bytes_tokenizer()
    tokenizer.save(folder / "tokenizer.json")
    assert main([str(folder), str(tmp_path / "run")]) == 0
    assert "imported 18,864 parameters into the run directory" in capsys.readouterr().out

    run = nfllm.load_run(tmp_path / "run")
    assert (run.step, run.model.vocab_size) == (0, 43)
    assert run.tokenizer.fingerprint == tokenizer.fingerprint
    with np.load(RECORDINGS / "gpt_neox" / "outputs.npz") as outputs:
        logits = run.model.apply({"params": run.params}, jnp.asarray(outputs["tokens"]))
        np.testing.assert_allclose(logits, outputs["logits"], rtol=0, atol=1e-5)
    record = read_record(tmp_path / "run")
    # How it was trained says nothing about the machine that loads it.
    model = dataclasses.replace(record.config.model, attention_implementation="xla")
    config = dataclasses.replace(record.config, model=model)
    write_record(tmp_path / "run", dataclasses.replace(record, config=config))
    assert nfllm.load_run(tmp_path / "run").model == run.model
    assert record.num_parameters == sum(x.size for x in jax.tree.leaves(run.params))
    assert record.data_fingerprint == record.config.data.dataset == "unknown"
    assert record.is_imported
    # Neither an optimizer nor a number of steps is known, and none is made up.
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(written["config"]) == ["model"]
    assert written["decayed_parameters"] == written["undecayed_parameters"] == []
    page = write_report([tmp_path / "run"], tmp_path / "report").read_text()
    assert "0, imported" in page

    assert main([str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert "exported the parameters of step 0" in capsys.readouterr().out
    assert_same_tensors(folder, tmp_path / "back")
    values = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (values["eos_token_id"], values["bos_token_id"]) == (256, 256)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
    described = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert (described["eos_token"], described["model_max_length"]) == ("<|endoftext|>", 20)


def test_import_without_a_tokenizer_says_so(source, tmp_path):
    message = convert(source("gpt2"), tmp_path / "run")
    assert message.endswith("run; there was no tokenizer.json: use the model with token ids")
    with pytest.raises(RunError, match=r"tokenizer.json cannot be read .* give token ids, or put"):
        _ = nfllm.load_run(tmp_path / "run").tokenizer
    with pytest.raises(RunError, match="holds an imported checkpoint, whose data is unknown"):
        nfllm.load_run(tmp_path / "run").validation_batches()
    run = nfllm.load_run(tmp_path / "run")
    sizes = "gpt2, layernorm, gelu_tanh, 2 layers, 4 heads, width 24"
    assert repr(run) == f"Run('{tmp_path / 'run'}', step 0: {sizes})"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.params))


def test_files_of_the_bare_model_with_mask_buffers(source):
    """The hub's gpt2: no prefix, no head, and the causal masks stored."""
    folder = source("gpt2")
    tensors = {
        name.removeprefix("transformer."): x
        for name, x in load_file(folder / "model.safetensors").items()
    }
    masks = {f"h.{layer}.attn.bias": np.ones((1, 1, 20, 20), np.float32) for layer in range(2)}
    save_file(tensors | masks, folder / "model.safetensors")
    expected = load_checkpoint(RECORDINGS / "gpt2").params
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(folder).params, expected)


# Layers, heads, width, MLP, context and vocabulary; activation, epsilon, ties, biases, turning
# share and base: as GPT2Config(), GPTNeoXConfig() and LlamaConfig() of transformers have them.
ABSENT = {
    gpt2: (12, 12, 768, 3072, 1024, 50257, "gelu_tanh", 1e-5, True, "all", True, 0.0, None),
    gpt_neox: (44, 64, 6144, 24576, 2048, 50432, "gelu", 1e-5, False, "all", True, 0.25, 1e4),
    llama: (32, 32, 4096, 11008, 2048, 32000, "silu", 1e-6, False, "none", False, 1.0, 1e4),
}


@pytest.mark.parametrize("family", ABSENT, ids=lambda family: family.ARCHITECTURE)
def test_absent_attributes_have_the_defaults_of_transformers(family):
    config, vocab_size = family.read_config(Attributes({}, "config.json"))
    sizes = (config.num_layers, config.num_heads, config.embed_dim, config.mlp_width)
    kinds = (config.activation, config.norm_epsilon, config.ties_embeddings)
    biases = (config.attention_bias, config.mlp_bias)
    turns = config.rotary_dim / config.head_dim
    rotary = (turns, config.rotary_wavelength_base if turns else None)
    assert (
        *(*sizes, config.context_length, vocab_size), *kinds, *biases, *rotary,
    ) == ABSENT[family]  # fmt: skip
    assert (config.kv_heads, config.init_std) == (config.num_heads, 0.02)


def test_attributes_of_transformers_4(source):
    """The hub's pythia: other names for rotary embedding, and buffers in the file."""
    folder = source(
        "gpt_neox",
        rope_parameters=DROPPED,
        rotary_pct=0.5,
        rotary_emb_base=500,
        torch_dtype="float16",
        hidden_dropout_prob=0,
    )
    tensors = load_file(folder / "model.safetensors")
    buffers = {
        f"gpt_neox.layers.{layer}.attention.{name}": np.ones(1, np.float32)
        for layer in range(2)
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    }
    save_file(tensors | buffers, folder / "model.safetensors")
    config = load_checkpoint(folder).config
    assert (config.rotary_fraction, config.rotary_base) == (0.5, 500.0)


@pytest.mark.parametrize("scaling", [None, {"type": "default"}])
def test_attributes_of_llama_in_transformers_4(source, scaling):
    """The base outside, frequencies in the file, and none of what version 5 adds."""
    folder = source(
        "llama_grouped_biased",
        rope_parameters=DROPPED,
        head_dim=DROPPED,
        rope_theta=500000.0,
        rope_scaling=scaling,
        torch_dtype="bfloat16",
    )
    tensors = load_file(folder / "model.safetensors")
    buffers = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)
        for layer in range(2)
    }
    save_file(tensors | buffers, folder / "model.safetensors")
    config = load_checkpoint(folder).config
    assert (config.rotary_dim, config.rotary_base) == (8, 500_000.0)
    assert (config.num_heads, config.num_kv_heads, config.mlp) == (4, 2, "gated")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(source, dtype):
    folder = source("gpt2")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: x.astype(dtype) for n, x in tensors.items()}, folder / "model.safetensors")
    table = load_checkpoint(folder).params["token_embedding"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, tensors["transformer.wte.weight"].astype(dtype))


def test_shards_are_joined(source):
    folder = source("gpt2")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = load_checkpoint(RECORDINGS / "gpt2").params
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(folder).params, expected)


def test_files_that_cannot_be_read_are_refused_by_name(source):
    folder = source("gpt2")
    tensors = load_file(folder / "model.safetensors")
    eighths = {name: tensor.astype(ml_dtypes.float8_e4m3fn) for name, tensor in tensors.items()}
    (folder / "model.safetensors").write_bytes(safetensors_of(eighths, "F8_E4M3"))
    with pytest.raises(ConversionError, match=r"of a type that cannot be read .* dequantize the"):
        load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"index\.json has no weight_map"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("case", "attributes", "message"),
    [
        ("gpt2", {"model_type": ["gpt2"]}, r"model_type=\['gpt2'\] cannot be converted"),
        ("gpt2", {"rope_theta": 1e4}, r"attribute rope_theta=10000\.0 is not understood"),
        ("gpt2", {"n_head_": 3}, "n_head_=3 is not understood.* did you mean 'n_head'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "only what .*_idx=False does"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"activation_function": "gelu_nwe"}, "did you mean 'gelu_new'"),
        ("gpt2", {"n_layer": "2"}, "n_layer='2' is of type str, expected int"),
        ("gpt2", {"n_layer": None}, "n_layer=None is of type NoneType, expected int"),
        ("gpt2", {"quantization_config": {}}, "quantization_config={} is not understood"),
        ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual=False is not"),
        ("gpt_neox", {"rope_scaling": {"type": "linear"}}, "rope_scaling=.* is not supported"),
        ("gpt_neox", {"rotary_pct": 0.5}, "contradicts itself about rotary embedding.*0.25.*0.5"),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_parameters: rope_type='yarn' is not supported",
        ),
        (
            "gpt_neox",
            {"rope_parameters": {"rope_type": "default", "factor": 2.0}},
            r"rope_parameters: the attribute factor=2\.0 is not understood",
        ),
        ("gpt_neox", {"model_type": "gptj"}, "model_type='gptj' cannot be converted; .*gpt2"),
        ("gpt_neox", {"model_type": "lama"}, "cannot be converted; did you mean 'llama'"),
        (
            "llama_tied_relu",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling=.*llama3.* is not supported",
        ),
        (
            "llama_tied_relu",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_parameters: rope_type='linear' is not supported",
        ),
        (
            "llama_tied_relu",
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"rope_parameters: the attribute partial_rotary_factor=0\.5 is not understood",
        ),
        ("llama_tied_relu", {"rope_theta": 5e5}, "contradicts itself about rotary.*10000.*500000"),
        ("llama_tied_relu", {"head_dim": 16}, "head_dim=16 is not supported; .* head_dim=8 does"),
        ("llama_tied_relu", {"sliding_window": 64}, "sliding_window=64 is not understood"),
        ("llama_tied_relu", {"hidden_act": "quick_gelu"}, "'quick_gelu' is not an activation"),
        ("llama_tied_relu", {"num_local_experts": 2}, "num_local_experts=2 is not understood"),
    ],
)
def test_attributes_are_refused_by_name(source, case, attributes, message):
    with pytest.raises(ConversionError, match=message):
        load_checkpoint(source(case, **attributes))


def test_impossible_sizes_of_a_foreign_config(source):
    folder = source("gpt2", n_head=5)
    with pytest.raises(
        ConversionError, match=r"config\.json .*num_heads=5 does not divide model\.embed_dim=24"
    ):
        load_checkpoint(folder)
    folder = source("llama_grouped_biased", num_key_value_heads=3)
    with pytest.raises(
        ConversionError, match=r"config\.json .*num_kv_heads=3 does not divide model\.num_heads=4"
    ):
        load_checkpoint(folder)
    rope = {"rope_type": "default", "partial_rotary_factor": 0.375, "rope_theta": 1e4}
    folder = source("gpt_neox", rope_parameters=rope)
    with pytest.raises(ConversionError, match="rotary width of 3 of head width 8"):
        load_checkpoint(folder)


def safetensors_of(tensors: dict[str, np.ndarray], dtype: str) -> bytes:
    """A safetensors file with a type that the library may not know how to write."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("gpt2", lambda t: t.pop("transformer.h.1.ln_2.bias"), "lacks the tensor .*h.1.ln_2.bias"),
        (
            "gpt2",
            lambda t: t.update({"score.weight": np.zeros((2, 24), np.float32)}),
            r"'transformer.score.weight' of shape \(2, 24\) does not belong",
        ),
        (
            "gpt2",
            lambda t: t.update({"transformer.wpe.weight": np.zeros((19, 24), np.float32)}),
            r"wpe.weight' has shape \(19, 24\), but by its config.json it should have \(20, 24\)",
        ),
        (
            "gpt2",
            lambda t: t.update({"transformer.wte.weight": np.zeros((43, 24), np.int8)}),
            "wte.weight' is of type int8; only float weights",
        ),
        (
            "gpt2",
            lambda t: t.update({"lm_head.weight": np.zeros((43, 24), np.float32)}),
            "'lm_head.weight' differs from .*says that they are tied",
        ),
        ("gpt_neox", lambda t: t.pop("embed_out.weight"), "lacks the tensor 'embed_out.weight'"),
    ],
)
def test_tensors_are_refused_by_name(source, case, change, message):
    folder = source(case)
    change_tensors(folder, change)
    with pytest.raises(ConversionError, match=message):
        load_checkpoint(folder)


def test_a_stored_copy_of_the_tied_head_is_dropped(source):
    folder = source("gpt2")
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))
    assert "head_embedding" not in load_checkpoint(folder).params


def test_files_that_cannot_be_read(source, tmp_path):
    with pytest.raises(ConversionError, match=r"nowhere is not a directory; nothing is downloaded"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match=r"empty has no config\.json"):
        load_checkpoint(tmp_path / "empty")
    folder = source("gpt2")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ConversionError, match="is not a complete safetensors file"):
        load_checkpoint(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"pickled weights .* are not read"):
        load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"config\.json is not JSON"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalization": "none"},
            "final normalization 'layernorm' cannot be expressed beside",
        ),
        ({"normalization": "dyt"}, "model.normalization='dyt' cannot be expressed"),
        (
            {"final_normalization": "rmsnorm"},
            "final_normalization='rmsnorm' cannot be expressed",
        ),
        (
            {"qk_normalization": "layernorm"},
            "qk_normalization='layernorm' cannot be expressed",
        ),
        (
            {"activation": "learnable_leaky_relu"},
            "='learnable_leaky_relu' cannot be expressed",
        ),
        ({"activation": "helu"}, "model.activation='helu' cannot be expressed"),
        (
            {"activation": "leaky_relu", "negative_slope": 0.1},
            r"model\.negative_slope=0\.1 cannot be expressed",
        ),
        (
            {"architecture": "gpt_neox", "rotary_fraction": 0.5, "residual_dropout": 0.1},
            r"model\.residual_dropout=0\.1 cannot be expressed",
        ),
    ],
)
def test_models_without_a_form_in_transformers_are_refused(changes, message, tmp_path):
    config = dataclasses.replace(LAYERNORM, **changes)
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path / "out", Checkpoint(config, 7, random_params(config, 7)))
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_and_changes_nothing(source, tmp_path, capsys):
    folder = source("gpt2")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    assert main([str(folder), str(tmp_path / "kept")]) == 2
    assert "kept exists and is not empty; name a new directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]

    assert main([str(source("gpt_neox", n_embd=5)), str(tmp_path / "run")]) == 2
    assert "error: " in (error := capsys.readouterr().err)
    assert "n_embd=5 is not understood" in error
    assert not (tmp_path / "run").exists()

    (folder / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"neither a format_version .* nor a model_type"):
        convert(folder, tmp_path / "run")


def authors_config(**changes: object) -> ModelConfig:
    return dataclasses.replace(DEFAULT, num_layers=3, attention_bias="qk", **changes)


@pytest.mark.parametrize("normalization", ["layernorm", "none"])
@pytest.mark.parametrize("sharing", [None, "layer", "untied_global"])
def test_released_names_both_ways(normalization, sharing):
    config = authors_config(
        normalization=normalization,
        activation="relu" if sharing is None else "learnable_leaky_relu",
        slope_sharing=sharing,
    )
    params = random_params(config, 11)
    tensors = to_authors(params, config)
    jax.tree.map(np.testing.assert_array_equal, from_authors(tensors, config), params)
    again = to_authors(from_authors(tensors, config), config)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    slopes = [x.shape for name, x in tensors.items() if name.endswith("slopes")]
    assert slopes == {None: [], "layer": [(3,)] * 3, "untied_global": [(1,)] * 3}[sharing]


def test_a_frozen_bias_that_is_not_zero_is_refused():
    config = authors_config()
    tensors = to_authors(random_params(config, 5), config)
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = 0.5
    with pytest.raises(ConversionError, match=r"transformer\.h\.1\.mlp\.c_fc\.bias is not zero"):
        from_authors(tensors, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tie_embeddings": False},
            "model.tie_embeddings=False cannot be expressed in",
        ),
        (
            {"attention_bias": "all"},
            "model.attention_bias='all' cannot be expressed in",
        ),
        ({"normalization": "rmsnorm"}, "it must be 'layernorm' or 'none'"),
        (
            {"activation": "learnable_leaky_relu", "slope_sharing": "model"},
            "model.slope_sharing='model' cannot be expressed in",
        ),
    ],
)
def test_models_without_released_names_are_refused(changes, message):
    config = dataclasses.replace(authors_config(), **changes)
    with pytest.raises(ConfigError, match=message):
        to_authors(random_params(config, 5), config)


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_files_of_runs_and_exports_have_the_usual_mode(umask, tmp_path):
    before = os.umask(umask)
    try:
        convert(RECORDINGS / "gpt2", tmp_path / "run")
        convert(tmp_path / "run", tmp_path / "exported")
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): (path.is_dir(), path.stat().st_mode & 0o777)
        for path in tmp_path.rglob("*")
    }
    assert {"run/config.json", "exported/model.safetensors"} < modes.keys()
    usual = {True: 0o777 & ~umask, False: 0o666 & ~umask}
    assert {name: mode for name, (is_dir, mode) in modes.items() if mode != usual[is_dir]} == {}


# Keys whose second value in `MODEL_KEYS` can be expressed in transformers, or changes no logit.
EXPRESSED = {
    "architecture",
    "num_layers",
    "num_heads",
    "embed_dim",
    "mlp_dim",
    "context_length",
    "normalization",
    "norm_epsilon",
    "activation",
    "attention_bias",
    "mlp_bias",
    "tie_embeddings",
    "rotary_fraction",
    "rotary_base",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "init_std",
    "init_std_scaling",
    "residual_init",
    "query_init_std",
    "attention_implementation",
    "scan_layers",
    "remat",
}


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_every_key_is_expressed_or_refused_by_name(key):
    others, _, second, _ = MODEL_KEYS[key]
    config = dataclasses.replace(LAYERNORM, activation="gelu", tie_embeddings=None)
    if key == "attention_transform":
        second = "squeezed"
        nfllm.register_attention_transform(second, lambda logits: logits / 2)
    config = dataclasses.replace(config, **{**others, key: second})
    form = {"gpt2": gpt2, "gpt_neox": gpt_neox}[config.architecture]
    if key in EXPRESSED:
        form.write_config(config)
        return
    keys = {"activation", "softmax_temperature", "normalization", "final_normalization"}
    decides = keys & others.keys()
    named = "|".join([key, *decides])
    with pytest.raises(ConfigError, match=rf"model\.({named})=.* cannot be expressed in tr"):
        form.write_config(config)


OF_LLAMA = EXPRESSED - {"normalization", "embedding_dropout", "residual_dropout"} | {
    "num_kv_heads",
}


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_every_key_is_expressed_in_a_llama_or_refused_by_name(key):
    others, _, second, _ = MODEL_KEYS[key]
    others = {name: x for name, x in others.items() if name != "rotary_fraction"}
    if key == "norm_placement":
        others = {}
    if key == "attention_transform":
        second = "halved"
        if second not in ATTENTION_TRANSFORMS:
            nfllm.register_attention_transform(second, lambda logits: logits / 2)
    if key in ("architecture", "rotary_fraction"):
        others, second = {}, {"architecture": "llama", "rotary_fraction": 1.0}[key]
    config = dataclasses.replace(LLAMA, **{**others, "architecture": "llama", key: second})
    if key in OF_LLAMA and config.mlp == "gated":
        llama.write_config(config)
        return
    named = "|".join([key, *others])
    with pytest.raises(ConfigError, match=rf"model\.({named})=.* cannot be expressed in tr"):
        llama.write_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mlp": "two_layer"},
            "model.mlp='two_layer' cannot be expressed .* must be 'gated'",
        ),
        ({"normalization": "none"}, "model.normalization='none' cannot be expressed .* 'rmsnorm'"),
        ({"final_normalization": "layernorm"}, "model.final_normalization='layernorm' cannot be"),
        (
            {"rotary_fraction": 0.5},
            r"rotary_fraction=0\.5 cannot be expressed .* None or 1\.0",
        ),
        ({"embedding_dropout": 0.1}, r"model.embedding_dropout=0\.1 cannot be expressed"),
        (
            {"activation": "learnable_leaky_relu"},
            "='learnable_leaky_relu' cannot be expressed",
        ),
    ],
)
def test_models_that_are_no_llama_are_refused(changes, message, tmp_path):
    config = dataclasses.replace(LLAMA, **changes)
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path / "out", Checkpoint(config, 7, random_params(config, 7)))
    assert not (tmp_path / "out").exists()


def test_an_rmsnorm_of_a_large_epsilon_is_no_frozen_norm(source):
    config = load_checkpoint(source("llama_tied_relu", rms_norm_eps=1e12)).config
    assert (config.normalization, config.norm_epsilon) == ("rmsnorm", 1e12)


@pytest.mark.parametrize("form", [gpt2, gpt_neox])
def test_as_many_key_heads_as_heads_are_in_every_form(form):
    architecture = form.__name__.rpartition(".")[2]
    config = dataclasses.replace(LAYERNORM, architecture=architecture, num_kv_heads=2)
    form.write_config(dataclasses.replace(config, activation="gelu"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_weight_norm": "spectral"},
        {"attention_branch_scale": 0.2},
        {"residual_init": "depth"},
        {"mlp_pruned_layers": 1},
    ],
    ids=str,
)
def test_a_key_of_later_is_overlooked_in_no_released_form(changes):
    config = dataclasses.replace(authors_config(), **changes)
    if changes == {"residual_init": "depth"}:  # how it starts is no part of the function
        assert to_authors(random_params(config, 5), config)
        return
    with pytest.raises(ConfigError, match=r"cannot be expressed in"):
        to_authors(random_params(config, 5), config)
