"""The registry of activations: each a function of the pre-activation and one coefficient.

Each is computed in float32, whatever the type of its input and output: in 16 bits, intermediate
terms may overflow or cancel, and the gradient of a learned coefficient is a sum over B T F entries.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nfllm.config import Activation
from nfllm.model.tuning import tuning

Coefficient = jax.Array | float
Activate = Callable[[jax.Array, Any], jax.Array]


def _keeping_only_inputs(function: Activate) -> Activate:
    """`function`, whose derivative keeps only its inputs if `Tuning` chooses so."""
    recomputed = jax.checkpoint(function, prevent_cse=False)

    @functools.wraps(function)
    def chosen(x: jax.Array, coefficient: Coefficient) -> jax.Array:
        return (recomputed if tuning().recompute_activations else function)(x, coefficient)

    return chosen


@_keeping_only_inputs
def gelu(x: jax.Array, _: Coefficient) -> jax.Array:
    """x Φ(x) = x/2 (1 + erf(x / sqrt(2))), the exact GELU (arXiv 1606.08415, section 2).

    Computed in float32, within 1.1e-6 of the true value, as in PyTorch.
    """
    # `jax.nn.gelu` uses erfc, which is more accurate for large x but twice as slow on a CPU.
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


@_keeping_only_inputs
def gelu_tanh(x: jax.Array, _: Coefficient) -> jax.Array:
    """x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) (arXiv 1606.08415, section 2)."""
    x32 = x.astype(jnp.float32)
    # (1 + tanh(u)) / 2 is the logistic function of 2u, in which nothing cancels. Beyond |x| = 12 it
    # is 0 or 1 in float32, while the cube of x could overflow.
    bounded = jnp.clip(x32, -12.0, 12.0)
    inner = (2 / jnp.pi) ** 0.5 * (bounded + 0.044715 * bounded**3)
    return (x32 * jax.nn.sigmoid(2 * inner)).astype(x.dtype)


@_keeping_only_inputs
def gelu_puma(x: jax.Array, _: Coefficient) -> jax.Array:
    """PUMA's approximation of GELU (arXiv 2307.12533, equations 2 and 3).

    0 below -4, a cubic below -1.95, a polynomial of degree 6 up to 3, and x beyond. Its largest
    error, 0.0199, is at 3, where it is discontinuous.
    """
    x32 = x.astype(jnp.float32)
    is_low, is_middle = (x32 >= -4) & (x32 < -1.95), (x32 >= -1.95) & (x32 <= 3)
    # Outside its range a polynomial could overflow, which would make the derivative of `where` NaN.
    cubic = jnp.polyval(jnp.float32(_PUMA_CUBIC), jnp.where(is_low, x32, -2.0))
    sextic = jnp.polyval(jnp.float32(_PUMA_SEXTIC), jnp.where(is_middle, x32, 0.0))
    outer = jnp.where(x32 < -4, 0.0, x32)
    return jnp.where(is_low, cubic, jnp.where(is_middle, sextic, outer)).astype(x.dtype)


_PUMA_CUBIC = (
    -0.011034134030615728,
    -0.11807612951181953,
    -0.42226581151983866,
    -0.5054031199708174,
)
_PUMA_SEXTIC = (
    0.0018067462606141187,
    0.0,
    -0.037688200365904236,
    0.0,
    0.3603292692789629,
    0.5,
    0.008526321541038084,
)


def relu(x: jax.Array, _: Coefficient) -> jax.Array:
    """max(x, 0), with derivative 0 at 0."""
    return jax.nn.relu(x)


@_keeping_only_inputs
def leaky_relu(x: jax.Array, slope: Coefficient) -> jax.Array:
    """x where x >= 0, else slope * x, with derivative 1 at 0; `slope` may be a learned scalar."""
    return jnp.where(x >= 0, x, (slope * x.astype(jnp.float32)).astype(x.dtype))


@_keeping_only_inputs
def silu(x: jax.Array, _: Coefficient) -> jax.Array:
    """x / (1 + exp(-x)) (arXiv 1702.03118, equation 3)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.nn.sigmoid(x32)).astype(x.dtype)


def relu_squared(x: jax.Array, _: Coefficient) -> jax.Array:
    """max(x, 0)² (arXiv 2109.08668, section 4)."""
    return jnp.square(jax.nn.relu(x))


@jax.custom_jvp
def helu(x: jax.Array, margin: Coefficient) -> jax.Array:
    """max(x, 0), with derivative 1 for all x > -margin (HeLU, arXiv 2411.10573)."""
    del margin
    return jnp.maximum(x, 0)


@helu.defjvp
def _helu_jvp(
    primals: tuple[jax.Array, Coefficient], tangents: tuple[jax.Array, Coefficient]
) -> tuple[jax.Array, jax.Array]:
    x, margin = primals
    return helu(x, margin), jnp.where(jnp.asarray(x, jnp.float32) > -margin, tangents[0], 0)


def identity(x: jax.Array, _: Coefficient) -> jax.Array:
    """x: the MLP becomes one linear map (the rows SM+LN and SM of arXiv 2410.09637)."""
    return x


def half_identity(x: jax.Array, _: Coefficient) -> jax.Array:
    """x/2: the limit of GELU for small inputs, and so the control for a linear GELU MLP."""
    return x / 2


ACTIVATIONS: dict[Activation, Activate] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_puma": gelu_puma,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "learnable_leaky_relu": leaky_relu,
    "silu": silu,
    "relu_squared": relu_squared,
    "helu": helu,
    "identity": identity,
    "half_identity": half_identity,
}

STARTS: dict[str, dict[str, float]] = {}
"""Initial values of the parameters of registered activations, which get all of them in a dict."""
