"""Which of several formulations of causal attention a program consists of."""

from typing import Literal

import jax
import jax.numpy as jnp

from nfllm.config import ConfigError, ModelConfig

_FEWEST_QUERIES = 128
_MOST_BLOCKS = 8


def choose_implementation(
    config: ModelConfig, dtype: jnp.dtype
) -> Literal["explicit", "blocks", "xla", "cudnn"]:
    """The formulation, for a program that records nothing but by-products of attention.

    `auto` is `blocks` on a CPU, where it was the fastest; see the README's Speed section. It is
    `explicit` on other devices, where nothing was measured, with attention dropout, which `blocks`
    lacks, and in float16, where a query may see nothing but scores of -Inf: there `explicit`
    attends to all later keys, as the code of arXiv 2410.09637 does, and `blocks` to some.
    """
    chosen = config.attention_implementation
    if chosen != "auto":
        return chosen
    fits = not config.attention_dropout and dtype != jnp.float16
    return "blocks" if fits and jax.default_backend() == "cpu" else "explicit"


def queries_per_block(length: int) -> int:
    """How many of `length` queries `blocks` takes at a time.

    128 were the fastest on a CPU, or as fast as any, at 256, 512 and 1024. More than eight blocks
    would save little and take long to compile.
    """
    return max(_FEWEST_QUERIES, -(-length // _MOST_BLOCKS))


def check_implementation(config: ModelConfig, dtype: jnp.dtype) -> None:
    """Raises ConfigError where this machine or this type cannot run the attention asked for."""
    if config.attention_implementation != "cudnn":
        return
    # ROCm is also called gpu, and has no cuDNN.
    on_nvidia = "cuda" in jax.devices()[0].client.platform_version
    if on_nvidia and dtype.itemsize == 2:
        return
    device = "this GPU" if on_nvidia else f"a {jax.default_backend().upper()}"
    raise ConfigError(
        f"model.attention_implementation='cudnn' cannot run in {dtype} on {device}; it needs an "
        "NVIDIA GPU and training.dtype='bfloat16' or 'float16', so use 'auto' instead"
    )
