"""Which of several formulations of causal attention a program consists of."""

from typing import Literal

import jax
import jax.numpy as jnp

from nfllm.config import ConfigError, ModelConfig


def choose_implementation(config: ModelConfig) -> Literal["explicit", "xla", "cudnn"]:
    """`explicit`, `xla` or `cudnn`, for a program that records nothing.

    `auto` is `explicit`: on a CPU the two that exist there are equally fast, and on GPUs none was
    measured; see the README's Speed section.
    """
    chosen = config.attention_implementation
    return "explicit" if chosen == "auto" else chosen


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
