"""The output head: hidden states times the (tied or own) embedding table."""

import jax
import jax.numpy as jnp


def unembed(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Logits = x · tableᵀ, [B, T, V], accumulated and returned in float32.

    In a 16-bit type the cotangent is cast to that type before the two backward products: they are a
    fifth of the training FLOPs at GPT-2's size, and would run at the float32 rate otherwise.
    """
    if x_BTD.dtype == jnp.float32:
        return _product(x_BTD, table_VD)
    return _unembed_16_bit(x_BTD, table_VD)


def _product(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    return jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _unembed_16_bit(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    return _product(x_BTD, table_VD)


def _forward(
    x_BTD: jax.Array, table_VD: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x_BTD, table_VD), (x_BTD, table_VD)


def _backward(
    residuals: tuple[jax.Array, jax.Array], cotangent_BTV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD, table_VD = residuals
    cotangent_BTV = cotangent_BTV.astype(x_BTD.dtype)
    x_bar = jnp.einsum("BTV,VD->BTD", cotangent_BTV, table_VD)
    table_bar = jnp.einsum("BTV,BTD->VD", cotangent_BTV, x_BTD)
    return x_bar, table_bar


_unembed_16_bit.defvjp(_forward, _backward)
