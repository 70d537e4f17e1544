"""Time and memory of each implementation of attention, at a constant number of tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from programs import SMALL, make_config

from nfllm.config import ConfigError
from nfllm.model.attention import Attention
from nfllm.model.attention_implementation import check_implementation
from parts.facts import median_seconds
from parts.rows import Row, Rows, halving

IMPLEMENTATIONS = ("explicit", "blocks", "xla", "cudnn")


def run(rows: Rows, rehearse: bool) -> None:
    tokens, heads, head_dim = (512, 2, 8) if rehearse else (65536, 12, 64)
    lengths = (32, 64) if rehearse else (128, 512, 1024, 2048, 4096)
    shapes = [
        (length, name)
        for length in lengths
        for name in IMPLEMENTATIONS
        if not rows.has(f"{name} T {length}") and can_run(name)
    ]

    def compiled(shape: tuple[int, str]) -> Any:
        length, name = shape
        try:
            return _compile(name, (tokens // length, length, heads, head_dim))
        except Exception as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        programs = dict(zip(shapes, pool.map(compiled, shapes), strict=True))

    def measure(length: int, name: str) -> Row:
        first: Any = programs.pop((length, name))
        if isinstance(first, Exception):
            raise first

        def of(sequences: int) -> Row:
            whole = sequences == tokens // length
            found = first if whole else _compile(name, (sequences, length, heads, head_dim))
            return _time(*found, (sequences, length, heads, head_dim))

        return halving(tokens // length, of)

    for length, name in shapes:
        rows.add(f"{name} T {length}", lambda n=name, t=length: measure(t, n))


def can_run(name: str) -> bool:
    """Whether the attention implementation `name` runs here; True for any other name."""
    if name not in IMPLEMENTATIONS:
        return True
    config = make_config(SMALL, model={"attention_implementation": name})
    try:
        check_implementation(config.model, jnp.dtype("bfloat16"))
    except ConfigError:
        return False
    return True


def attention_module(name: str, shape: tuple[int, int, int, int], dtype: jnp.dtype) -> Attention:
    """Attention of one implementation for queries of `shape`, [B, T, H, K]."""
    _, length, heads, head_dim = shape
    model = {
        "attention_implementation": name,
        "context_length": length,
        "num_heads": heads,
        "embed_dim": heads * head_dim,
    }
    return Attention(make_config(SMALL, model=model).model, dtype)


def _compile(name: str, shape: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """The compiled forward pass, and the compiled forward and backward pass."""
    module = attention_module(name, shape, jnp.dtype("bfloat16"))

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        return module.apply({}, q, k, v, method=Attention.mix)

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        mixed, backward = jax.vjp(mix, q, k, v)
        return backward(mixed)

    operand = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    forward, both = (
        jax.jit(f).lower(operand, operand, operand).compile() for f in (mix, gradients)
    )
    return forward, both


def _time(forward: Any, both: Any, shape: tuple[int, int, int, int]) -> Row:
    operands = jax.random.normal(jax.random.key(0), (3, *shape)).astype(jnp.bfloat16)
    q, k, v = operands
    return {
        "forward_ms": 1e3 * median_seconds(lambda: forward(q, k, v)),
        "forward_backward_ms": 1e3 * median_seconds(lambda: both(q, k, v)),
        "temporary_gb": both.memory_analysis().temp_size_in_bytes / 1e9,
    }
