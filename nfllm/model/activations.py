"""The registry of activations: each a function of the pre-activation and one coefficient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.config import Activation
from nfllm.model.tuning import tuning

Coefficient = jax.Array | float


def gelu(x: jax.Array, _: Coefficient) -> jax.Array:
    """x Φ(x) = x/2 (1 + erf(x / sqrt(2))), the exact GELU (arXiv 1606.08415, section 2).

    Computed in float32, within 1.1e-6 of the true value, as in PyTorch.
    """
    return (_recomputed_gelu if tuning().recompute_gelu else _gelu)(x)


# Not `jax.nn.gelu`, whose erfc is closer where x is large but twice as slow on a CPU.
def _gelu(x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


# Of its intermediates only x, in its own type, needs to be kept for the derivative.
_recomputed_gelu = jax.checkpoint(_gelu, prevent_cse=False)


def gelu_tanh(x: jax.Array, _: Coefficient) -> jax.Array:
    """x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) (arXiv 1606.08415, section 2)."""
    return jax.nn.gelu(x, approximate=True)


def relu(x: jax.Array, _: Coefficient) -> jax.Array:
    """max(x, 0), with derivative 0 at 0."""
    return jax.nn.relu(x)


def leaky_relu(x: jax.Array, slope: Coefficient) -> jax.Array:
    """x where x >= 0, else slope * x, with derivative 1 at 0; `slope` may be a learned scalar."""
    return jnp.where(x >= 0, x, jnp.asarray(slope, x.dtype) * x)


def silu(x: jax.Array, _: Coefficient) -> jax.Array:
    """x / (1 + exp(-x)) (arXiv 1702.03118, equation 3)."""
    return jax.nn.silu(x)


def relu_squared(x: jax.Array, _: Coefficient) -> jax.Array:
    """max(x, 0)² (arXiv 2109.08668, section 4)."""
    return jnp.square(jax.nn.relu(x))


@jax.custom_jvp
def helu(x: jax.Array, margin: Coefficient) -> jax.Array:
    """max(x, 0), whose derivative is 1 already where x > -margin (HeLU, arXiv 2411.10573)."""
    del margin
    return jnp.maximum(x, 0)


@helu.defjvp
def _helu_jvp(
    primals: tuple[jax.Array, Coefficient], tangents: tuple[jax.Array, Coefficient]
) -> tuple[jax.Array, jax.Array]:
    x, margin = primals
    return helu(x, margin), jnp.where(x > -jnp.asarray(margin, x.dtype), tangents[0], 0)


def identity(x: jax.Array, _: Coefficient) -> jax.Array:
    """x: the MLP becomes one linear map (the rows SM+LN and SM of arXiv 2410.09637)."""
    return x


def half_identity(x: jax.Array, _: Coefficient) -> jax.Array:
    """x/2: what GELU tends to as its inputs get small, and so the control for a linear GELU MLP."""
    return x / 2


ACTIVATIONS: dict[Activation, Callable[[jax.Array, Coefficient], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "learnable_leaky_relu": leaky_relu,
    "silu": silu,
    "relu_squared": relu_squared,
    "helu": helu,
    "identity": identity,
    "half_identity": half_identity,
}
