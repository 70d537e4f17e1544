"""Against transformers itself, where the extra `hf` is installed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import huggingface_outputs
import jax.numpy as jnp
import numpy as np
import pytest
from parity_recordings import DEFAULT
from test_convert import random_params

from nfllm.convert import Checkpoint, convert, load_checkpoint, save_checkpoint
from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.model import Decoder

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
RECORDINGS = Path(__file__).parent / "recordings"
sys.path.insert(0, str(RECORDINGS))
record_hf = pytest.importorskip("record_hf")

LAYERNORM = dataclasses.replace(
    DEFAULT.model,
    num_layers=2,
    num_heads=4,
    embed_dim=32,
    mlp_dim=40,
    context_length=20,
    normalization="layernorm",
)


@pytest.mark.parametrize("case", record_hf.CASES)
def test_recordings_are_what_transformers_computes(case):
    model = (
        record_hf.CLASSES[case]
        .from_pretrained(RECORDINGS / case, attn_implementation="eager")
        .eval()
    )
    now = record_hf.outputs(model, case, seed=1)
    with np.load(RECORDINGS / case / "outputs.npz") as recorded:
        assert now.keys() == set(recorded.files)
        for name, value in now.items():
            largest = np.abs(recorded[name]).max()
            np.testing.assert_allclose(
                value, recorded[name], rtol=0, atol=1e-5 * largest, err_msg=name
            )


@pytest.mark.parametrize("case", record_hf.CASES)
def test_new_models(case, tmp_path):
    model = record_hf.build(case, seed=100)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    if case == "gpt_neox_norm_free":
        checkpoint = huggingface_outputs.without_block_norms(checkpoint)
    huggingface_outputs.check_outputs(checkpoint, record_hf.outputs(model, case, seed=100))


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "gpt2", "attention_bias": "qk", "activation": "gelu"},
        {"architecture": "gpt2", "attention_bias": "all", "mlp_bias": True, "activation": "silu"},
        {"architecture": "gpt2", "tie_embeddings": False, "activation": "relu_squared"},
        {"architecture": "gpt2", "activation": "leaky_relu", "norm_epsilon": 0.1},
        {"architecture": "gpt2", "activation": "identity"},
        {"architecture": "gpt_neox", "attention_bias": "qk", "activation": "gelu_tanh"},
        {"architecture": "gpt_neox", "rotary_base": 50.0, "rotary_fraction": 1.0},
        {"architecture": "gpt_neox", "tie_embeddings": True, "mlp_bias": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_exports_load_and_give_the_same_logits(changes, tmp_path):
    config = dataclasses.replace(LAYERNORM, **changes)
    params = random_params(config, 43)
    save_checkpoint(tmp_path, Checkpoint(config, 43, params))
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens_BT = np.random.default_rng(3).integers(0, 43, (2, 20))
    ours = Decoder(config, 43).apply({"params": params}, jnp.asarray(tokens_BT))
    with torch.no_grad():
        theirs = loaded.eval()(torch.from_numpy(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_exported_tokenizer(tmp_path):
    """AutoTokenizer reads it beside the model, and gives the same ids."""
    source = tmp_path / "source"
    shutil.copytree(RECORDINGS / "gpt2", source)
    tokenizer = bytes_tokenizer()
    tokenizer.save(source / "tokenizer.json")
    convert(source, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "exported")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "def f(x):\n    return 'ü'  # end\n"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == tokenizer.end_of_text_id
    described = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert described["eos_token_id"] == tokenizer.end_of_text_id
