"""Other implementations of GPT-2: the same shape, the same batch, a full training step each.

They are Hugging Face's, a plain one in torch, and a plain one in Flax. All have LayerNorm, GELU by
erf and a tied head; Hugging Face's has biases too. They have no dropout, clip gradients and use
AdamW. On CUDA, products are in bfloat16 and parameters in float32; on a CPU all are in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from programs import Workload

Step = Callable[[], object]


def torch_version() -> str | None:
    """Versions of torch and transformers; None if they cannot be imported."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def make_peers(workload: Workload, cores: int) -> dict[str, Step]:
    """Training steps of Hugging Face's GPT-2 by name; each returns when its work is done.

    A peer that cannot run here is left out, and the reason is printed.
    """
    if torch_version() is None:
        return {}
    import torch

    torch.set_num_threads(cores)
    peers = {"torch GPT-2 eager": torch_step(hugging_face(workload), workload, compiled=False)}
    try:
        compiled = torch_step(hugging_face(workload), workload, compiled=True)
        compiled()
    except Exception as error:  # of any kind: a missing C++ compiler, Triton, ...
        print(f"torch.compile cannot run here: {str(error).splitlines()[0]}", flush=True)
    else:
        peers["torch GPT-2 compiled"] = compiled
    return peers


def tokens_of(workload: Workload) -> np.ndarray:
    """The batch of every peer, token ids [B, T]."""
    size = (workload.sequences, workload.context_length)
    return np.random.RandomState(0).randint(0, workload.vocab_size, size)


def torch_step(model: Any, workload: Workload, *, compiled: bool) -> Step:
    """Forward, backward, clipping and fused AdamW of a torch model that returns its loss."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = torch.as_tensor(tokens_of(workload), device=device)
    parameters = list(model.parameters())
    if compiled:
        model = torch.compile(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=tokens, labels=tokens)
            loss = loss if isinstance(loss, torch.Tensor) else loss.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def hugging_face(workload: Workload) -> Any:
    """`GPT2LMHeadModel`, with attention by SDPA."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=workload.vocab_size,
            n_positions=workload.context_length,
            n_embd=workload.width,
            n_layer=workload.layers,
            n_head=workload.heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )


def plain_torch(workload: Workload) -> Any:
    """GPT-2 in plain torch modules, with attention by SDPA."""
    import torch
    from torch import nn as tnn
    from torch.nn import functional

    width, heads = workload.width, workload.heads

    class Block(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = tnn.LayerNorm(width), tnn.LayerNorm(width)
            self.qkv = tnn.Linear(width, 3 * width, bias=False)
            self.out = tnn.Linear(width, width, bias=False)
            self.mlp_in = tnn.Linear(width, 4 * width, bias=False)
            self.mlp_out = tnn.Linear(4 * width, width, bias=False)

        def forward(self, x: Any) -> Any:
            sequences, length, _ = x.shape
            qkv = self.qkv(self.norm1(x)).view(sequences, length, 3, heads, width // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(sequences, length, width))
            return x + self.mlp_out(functional.gelu(self.mlp_in(self.norm2(x))))

    class Gpt2(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = tnn.Embedding(workload.vocab_size, width)
            self.positions = tnn.Embedding(workload.context_length, width)
            self.blocks = tnn.ModuleList(Block() for _ in range(workload.layers))
            self.norm = tnn.LayerNorm(width)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    tnn.init.normal_(parameter, std=0.02)

        def forward(self, input_ids: Any, labels: Any) -> Any:
            x = self.tokens(input_ids) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
            return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    torch.manual_seed(0)
    return Gpt2()


def plain_flax(workload: Workload) -> Step:
    """GPT-2 from flax.linen's own modules and optax's own loss, under one jit."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    class Gpt2(nn.Module):
        @nn.compact
        def __call__(self, tokens_BT: jax.Array) -> jax.Array:
            embed = nn.Embed(workload.vocab_size, workload.width, dtype=dtype)
            positions = nn.Embed(workload.context_length, workload.width, dtype=dtype)
            x = embed(tokens_BT) + positions(jnp.arange(tokens_BT.shape[1]))[None]
            mask = nn.make_causal_mask(tokens_BT, dtype=bool)
            for _ in range(workload.layers):
                attention = nn.MultiHeadDotProductAttention(
                    workload.heads, dtype=dtype, use_bias=False
                )
                x = x + attention(nn.LayerNorm(dtype=dtype)(x), mask=mask)
                y = nn.Dense(4 * workload.width, use_bias=False, dtype=dtype)(
                    nn.LayerNorm(dtype=dtype)(x)
                )
                y = nn.gelu(y, approximate=False)
                x = x + nn.Dense(workload.width, use_bias=False, dtype=dtype)(y)
            return embed.attend(nn.LayerNorm(dtype=dtype)(x))

    model = Gpt2()
    tokens_BT = jnp.asarray(tokens_of(workload))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1))
    params = jax.jit(model.init)(jax.random.key(0), tokens_BT[:1])
    state = [params, jax.jit(optimizer.init)(params)]

    def loss_of(params: Any) -> jax.Array:
        logits_BTV = model.apply(params, tokens_BT)[:, :-1].astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:])
        return losses.mean()

    def update(params: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        *state[:], loss = compiled(*state)
        jax.block_until_ready((state, loss))

    return step
