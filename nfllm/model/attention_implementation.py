"""Chooses one of several implementations of causal attention for a program."""

from typing import Literal

import jax
import jax.numpy as jnp

from nfllm.config import ConfigError, ModelConfig
from nfllm.config.names import FUSED_ATTENTION
from nfllm.model.tuning import tuning

Implementation = Literal["explicit", "blocks", "xla", "cudnn"]

_FEWEST_QUERIES = 128
_MOST_BLOCKS = 8
_WIDEST_CUDNN_HEAD = 128  # cuDNN has no derivative for wider ones on most GPUs


def choose_implementation(config: ModelConfig, dtype: jnp.dtype) -> Implementation:
    """The implementation for a program that needs only by-products of attention probabilities.

    `auto` is the choice of `tuning` for this backend if it can run, and `explicit` otherwise. In
    float16 it is always `explicit`: there all visible scores of a query may be -Inf, and `explicit`
    then attends to all later keys, as the code of arXiv 2410.09637 does.
    """
    chosen = config.attention_implementation
    if chosen != "auto":
        return chosen
    fastest = tuning().attention
    fits = not config.attention_dropout and dtype != jnp.float16
    plain = config.attention_shaping == "none" and config.attention_transform == "none"
    fits &= plain or fastest == "blocks"
    if fastest == "cudnn":
        fits &= dtype == jnp.bfloat16 and _on_nvidia()
        fits &= config.head_dim % 8 == 0 and config.head_dim <= _WIDEST_CUDNN_HEAD
    return fastest if fits and config.context_length >= tuning().attention_from else "explicit"


def implementation_of_step(
    config: ModelConfig, dtype: jnp.dtype, *, with_entropy: bool
) -> Implementation:
    """The implementation in a training step, which must form logits if it computes entropies."""
    chosen = choose_implementation(config, dtype)
    return "explicit" if with_entropy and chosen in FUSED_ATTENTION else chosen


def queries_per_block(length: int) -> int:
    """The number of queries in a block of the implementation `blocks`, out of `length`.

    On a CPU, 128 was the fastest size, or as fast as any, for 256, 512 and 1024 queries. More than
    eight blocks would save little and take long to compile.
    """
    return max(_FEWEST_QUERIES, -(-length // _MOST_BLOCKS))


def check_implementation(config: ModelConfig, dtype: jnp.dtype) -> None:
    """Raises ConfigError if this machine or this dtype cannot run the configured attention."""
    if config.attention_implementation == "blocks" and dtype == jnp.float16:
        raise ConfigError(
            "model.attention_implementation='blocks' cannot run in float16, in which all scores of "
            "a query may be -Inf; use 'auto', or training.dtype='bfloat16'"
        )
    if config.attention_implementation != "cudnn":
        return
    on_nvidia = _on_nvidia()
    if on_nvidia and dtype.itemsize == 2:
        return
    device = "this GPU" if on_nvidia else f"a {jax.default_backend().upper()}"
    raise ConfigError(
        f"model.attention_implementation='cudnn' cannot run in {dtype} on {device}; it needs an "
        "NVIDIA GPU and training.dtype='bfloat16' or 'float16', so use 'auto' instead"
    )


def _on_nvidia() -> bool:
    """Whether there is cuDNN: JAX calls ROCm devices gpu as well, but they do not have it."""
    return "cuda" in jax.devices()[0].client.platform_version
