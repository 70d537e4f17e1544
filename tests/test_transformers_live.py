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

from nfllm import analyze, capture, foreign
from nfllm.analysis import attention_entropy_from_qk
from nfllm.analysis.arrays import as_array
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
LLAMA = {
    "architecture": "llama",
    "normalization": "rmsnorm",
    "final_normalization": "rmsnorm",
    "mlp": "gated",
    "activation": "silu",
}


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
        LLAMA,
        {**LLAMA, "num_kv_heads": 2, "rotary_base": 50.0, "tie_embeddings": True},
        {**LLAMA, "num_kv_heads": 1, "attention_bias": "all", "activation": "gelu_tanh"},
        {**LLAMA, "attention_bias": "qk", "mlp_bias": True, "mlp_dim": None, "norm_epsilon": 0.1},
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


def llama(**config):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=43,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **config,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return model.eval()


@pytest.mark.parametrize("case", [case for case in record_hf.CASES if "norm_free" not in case])
def test_sites_of_transformers_are_those_of_the_converted_model(case, tmp_path):
    model = record_hf.build(case, seed=7)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    tokens_BT = np.random.default_rng(3).integers(0, 43, (3, 14))
    sites = foreign.from_transformers(model)(tokens_BT)
    captured = capture(Decoder(checkpoint.config, 43), checkpoint.params, tokens_BT)
    assert set(captured._fields) - set(sites) == {"query", "key", "value", "attention_logits"}
    for site, value in sites.items():
        ours, theirs = getattr(captured, site), as_array(value)
        largest = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * largest, err_msg=site)
    metrics = ["head_entropy", "mlp_ratio", "linear_fit", "residual_norm"]
    found = foreign.analyze(foreign.from_transformers(model), [tokens_BT], metrics)
    ours = analyze(Decoder(checkpoint.config, 43), checkpoint.params, [tokens_BT], metrics)
    np.testing.assert_allclose(found["head_entropy"].mean, ours["head_entropy"].mean, atol=1e-5)
    np.testing.assert_allclose(found["mlp_ratio"].mean, ours["mlp_ratio"].mean, rtol=1e-4)


def test_grouped_heads_of_llama():
    """Their entropy from probabilities, and from queries and keys as its own code rotates them."""
    model = llama(attn_implementation="eager")
    tokens_BT = np.random.default_rng(3).integers(0, 43, (3, 14))
    sites_of = foreign.from_transformers(model)
    sites = {site: np.array(as_array(value)) for site, value in sites_of(tokens_BT).items()}
    assert sites["attention_probs"].shape == (2, 3, 4, 14, 14)
    assert sites["residual"].shape == (3, 3, 14, 32)
    probs = sites["attention_probs"].astype(np.float64)
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1)
    found = foreign.analyze(sites_of, [tokens_BT], ["head_entropy"])["head_entropy"]
    np.testing.assert_allclose(found.mean, entropy.mean((1, 3)), atol=1e-5)
    # Blocks add up as they do in ours.
    stream = sites["residual"][:-1] + sites["attention_out"] + sites["mlp_out"]
    np.testing.assert_allclose(stream, sites["residual"][1:], atol=1e-4)
    with torch.no_grad():
        block = model.model.layers[1].self_attn
        hidden = torch.from_numpy(sites["attention_in"][1])
        q, k = (
            projection(hidden).unflatten(-1, (-1, 8)).transpose(1, 2)
            for projection in (block.q_proj, block.k_proj)
        )
        cos, sin = model.model.rotary_emb(hidden, torch.arange(14)[None])
        q, k = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        out = torch.from_numpy(sites["head_out"][1]).flatten(-2)
        np.testing.assert_allclose(block.o_proj(out), sites["attention_out"][1], atol=1e-5)
        mlp = model.model.layers[1].mlp
        post = torch.from_numpy(sites["mlp_post"][1])
        mlp_in, pre = (torch.from_numpy(sites[site][1]) for site in ("mlp_in", "mlp_pre"))
        np.testing.assert_allclose(mlp.act_fn(pre) * mlp.up_proj(mlp_in), post, atol=1e-4)
        np.testing.assert_allclose(mlp.down_proj(post), sites["mlp_out"][1], atol=1e-4)
    np.testing.assert_allclose(attention_entropy_from_qk(q, k), entropy[1], atol=1e-4)


def test_probabilities_in_bfloat16():
    """Rounded rows are distributions within what their type can hold."""
    model = llama(attn_implementation="eager").to(torch.bfloat16)
    sites_of = foreign.from_transformers(model, ["attention_probs"])
    tokens_BT = np.random.default_rng(3).integers(0, 43, (3, 14))
    found = foreign.analyze(sites_of, [tokens_BT])["head_entropy"].mean
    assert set(sites_of(tokens_BT)) == {"attention_probs"}
    assert (found > 0.1).all()


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_a_model_without_attention_probabilities_is_an_error(kind):
    tokens_BT = np.zeros((1, 4), np.int32)
    model = llama(attn_implementation=kind).train(kind == "eager")
    message = {"sdpa": r'load it with .*attn_implementation="eager"', "eager": r"model.eval\(\)"}
    with pytest.raises(ValueError, match=message[kind]):
        foreign.from_transformers(model)(tokens_BT)


def test_hooks_are_taken_away_again():
    model = llama(attn_implementation="eager")
    sites_of = foreign.from_transformers(model)

    def count():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    model(torch.zeros((1, 4), dtype=torch.long), output_attentions=True)  # adds its own, once
    before = count()
    assert sites_of(np.zeros((1, 4), np.int32)).keys() >= {"residual", "mlp_out"}
    assert count() == before
    with pytest.raises(ValueError, match="does not give the site 'mlp_poste'; did you mean 'mlp_p"):
        foreign.from_transformers(model, ["mlp_poste"])


def test_a_family_without_a_layout():
    config = transformers.Qwen2Config(
        vocab_size=43,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    tokens_BT = np.random.default_rng(3).integers(0, 43, (3, 14))
    assert set(foreign.from_transformers(model)(tokens_BT)) == {"attention_probs", "logits"}
    with pytest.raises(ValueError, match="the metric 'mlp_ratio' needs the site"):
        foreign.analyze(foreign.from_transformers(model), [tokens_BT], ["mlp_ratio"])
    sites_of = foreign.from_transformers(model, layout=foreign.LAYOUTS["llama"])
    assert foreign.analyze(sites_of, [tokens_BT], ["mlp_ratio"])["mlp_ratio"].mean.shape == (2,)


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
