"""Hugging Face GPT-2 in torch, eager and compiled: the same shape, the same batch, a full step."""

from collections.abc import Callable
from typing import Any

import numpy as np
from programs import Workload


def torch_version() -> str | None:
    """Versions of torch and transformers; None where they cannot be imported."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def make_peers(workload: Workload, cores: int) -> dict[str, Callable[[], object]]:
    """Steps of forward, backward, clipping and AdamW, done when they return.

    On CUDA in bfloat16 by autocast, with float32 parameters; on a CPU in float32. Attention by
    SDPA, AdamW fused, no dropout. A peer that cannot run here is left out, and a line says why.
    """
    if torch_version() is None:
        return {}
    import torch

    torch.set_num_threads(cores)
    peers = {"torch GPT-2 eager": _step(workload, compiled=False)}
    try:
        compiled = _step(workload, compiled=True)
        compiled()
    except Exception as error:  # of any kind: a missing C++ compiler, Triton, ...
        print(f"torch.compile cannot run here: {str(error).splitlines()[0]}", flush=True)
    else:
        peers["torch GPT-2 compiled"] = compiled
    return peers


def _step(workload: Workload, compiled: bool) -> Callable[[], object]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = workload.model
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=workload.vocab_size,
            n_positions=shape["context_length"],
            n_embd=shape["embed_dim"],
            n_layer=shape["num_layers"],
            n_head=shape["num_heads"],
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    size = (workload.sequences, shape["context_length"])
    tokens = np.random.RandomState(0).randint(0, workload.vocab_size, size)
    tokens = torch.as_tensor(tokens, device=device)
    if compiled:
        model = torch.compile(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
