"""Records tiny random GPT-2, GPT-NeoX and Llama models of transformers, and what they compute.

    python tests/recordings/record_hf.py

Needs the extra `hf`. Each folder beside this file holds a checkpoint as `save_pretrained` wrote it,
and `outputs.npz`: tokens, logits, attention probabilities, mean next-token loss, and its gradients
under the checkpoint's names.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

FOLDER = Path(__file__).parent

_GPT2 = {
    "vocab_size": 43,
    "n_positions": 20,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GPT_NEOX = {
    "vocab_size": 43,
    "max_position_embeddings": 20,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA = {
    "vocab_size": 43,
    "max_position_embeddings": 20,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _rotary(fraction: float, base: float) -> dict[str, object]:
    return {"rope_type": "default", "partial_rotary_factor": fraction, "rope_theta": base}


CASES = {
    "gpt2": GPT2Config(**_GPT2),
    "gpt2_untied_relu": GPT2Config(
        **_GPT2,
        n_inner=40,
        activation_function="relu",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
    "gpt_neox": GPTNeoXConfig(**_GPT_NEOX, rope_parameters=_rotary(0.25, 10_000.0)),
    "gpt_neox_tied_unbiased": GPTNeoXConfig(
        **_GPT_NEOX,
        rope_parameters=_rotary(0.75, 100.0),
        hidden_act="gelu_new",
        tie_word_embeddings=True,
        attention_bias=False,
        layer_norm_eps=1e-3,
    ),
    # The block's two LayerNorms are taken out of the running model; the checkpoint still has them.
    "gpt_neox_norm_free": GPTNeoXConfig(
        **_GPT_NEOX, rope_parameters=_rotary(0.5, 10_000.0), hidden_act="relu"
    ),
    "llama_grouped_biased": LlamaConfig(
        **_LLAMA,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "llama_tied_relu": LlamaConfig(
        **_LLAMA, hidden_act="relu", tie_word_embeddings=True, rms_norm_eps=1e-3
    ),
}

_CLASSES = {
    GPT2Config: GPT2LMHeadModel,
    GPTNeoXConfig: GPTNeoXForCausalLM,
    LlamaConfig: LlamaForCausalLM,
}
CLASSES = {name: _CLASSES[type(config)] for name, config in CASES.items()}


def build(name: str, seed: int) -> torch.nn.Module:
    """The model of a case, with random weights large enough for attention far from uniform."""
    torch.manual_seed(seed)
    model = CLASSES[name](CASES[name])
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        mean = 1.0 if parameter.ndim == 1 and bool(torch.all(parameter == 1)) else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    return model.eval()


def outputs(model: torch.nn.Module, name: str, seed: int) -> dict[str, np.ndarray]:
    """What a case's model computes of random tokens, without its norms where the case says so."""
    parameters = dict(model.named_parameters())
    if name == "gpt_neox_norm_free":
        for layer in model.gpt_neox.layers:
            layer.input_layernorm = torch.nn.Identity()
            layer.post_attention_layernorm = torch.nn.Identity()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.config.vocab_size, (2, 14), generator=generator)
    found = model(tokens, labels=tokens, output_attentions=True)
    model.zero_grad()
    found.loss.backward()
    gradients = {
        f"gradient/{_saved_name(model, name)}": np.zeros(p.shape, np.float32)
        if p.grad is None
        else p.grad.numpy()
        for name, p in parameters.items()
    }
    return {
        "tokens": tokens.numpy().astype(np.int32),
        "logits": found.logits.detach().numpy(),
        "attention": torch.stack(found.attentions).detach().numpy(),
        "loss": found.loss.detach().numpy(),
        **gradients,
    }


def _saved_name(model: torch.nn.Module, name: str) -> str:
    """The name in the checkpoint, where a GPT-NeoX's head is called otherwise."""
    is_gpt_neox = isinstance(model, GPTNeoXForCausalLM)
    return name.replace("lm_head", "embed_out") if is_gpt_neox else name


def record(name: str) -> None:
    """Writes one case."""
    model = build(name, seed=len(name))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        folder = FOLDER / name
        folder.mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_bytes((Path(scratch) / file).read_bytes())
    np.savez_compressed(folder / "outputs.npz", **outputs(model, name, seed=1))


if __name__ == "__main__":
    for case in CASES:
        record(case)
