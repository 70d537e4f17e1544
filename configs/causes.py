"""Controls of a cause: is it that GELU is linear near zero, where norm-free MLPs have their inputs?

Without normalization the inputs of the first layers' activations are small (root mean square 0.05
to 0.4 in small models), and there GELU(x) is about x/2. Then an activation like GELU whose linear
zone is narrow must do as ReLU does, one like ReLU with a linear zone as GELU does, and larger
inputs, from larger embeddings, must part GELU from x/2. These variants are the group `cause` of
`configs/paper.py`. Fixed before any result was seen: 16, 0.5, sqrt(width).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import nfllm

SCALE = 16.0
ZONE = 0.5


def gelu_narrow(x: jax.Array) -> jax.Array:
    """GELU(16 x) / 16: linear only where |x| is far below 1/16, and ReLU far beyond it."""
    x32 = x.astype(jnp.float32)
    return (jax.nn.gelu(SCALE * x32, approximate=False) / SCALE).astype(x.dtype)


def relu_zone(x: jax.Array) -> jax.Array:
    """(x + max(|x| - 0.5, 0)) / 2: x/2 where |x| <= 0.5, with ReLU's slopes 0 and 1 beyond it."""
    return (x + jax.nn.relu(jnp.abs(x) - ZONE)) / 2


nfllm.register_activation("gelu_narrow", gelu_narrow)
nfllm.register_activation("relu_zone", relu_zone)
