"""The output head: hidden states times the (tied or own) embedding table."""

import jax

from nfllm.model.products import einsum_to_float32


def unembed(x: jax.Array, table_VD: jax.Array) -> jax.Array:
    """logits = x · tableᵀ, [..., V], in float32, of hidden states [..., D] in the table's type."""
    return einsum_to_float32("...D,VD->...V", x, table_VD)
