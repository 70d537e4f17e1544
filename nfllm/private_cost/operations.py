"""The operations of one private forward pass, counted exactly.

Attention maps are counted as full squares [T, T], as in the tables of arXiv 2410.13060 and
2501.03489: a protocol must not show which of their entries are masked.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable

from nfllm.config import ConfigError, Normalization
from nfllm.private_cost.primitives import (
    ACTIVATION_ELEMENT,
    EMBEDDING_ELEMENT,
    NORMALIZATION_ELEMENT,
    NORMALIZATION_ROW,
    NOTHING,
    SOFTMAX_ELEMENT,
    SOFTMAX_ROW,
    Primitives,
)
from nfllm.private_cost.shape import DecoderShape


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of operation over all layers.

    Attributes:
      name: of the operation.
      rows: number of output vectors.
      width: elements of each vector.
      flops: FLOPs of its matrix products, two per multiply-add.
      primitives: of all elements and rows; None: nfllm knows no published protocol.
    """

    name: str
    rows: int
    width: int
    flops: int = 0
    primitives: Primitives | None = NOTHING

    @property
    def elements(self) -> int:
        """Number of output elements."""
        return self.rows * self.width


def count_operations(shape: DecoderShape, num_tokens: int) -> tuple[Operation, ...]:
    """The operations of one forward pass of T = `num_tokens` tokens, in order of execution.

    The token embedding is a one-hot vector, from V equality tests, times the table. The output head
    computes logits at all T positions.

    Raises:
      ConfigError: `num_tokens` is not a whole number, or below 1.
    """
    if not isinstance(num_tokens, numbers.Integral) or num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens!r} must be a whole number of at least 1")
    T, L, L_mlp = num_tokens, shape.num_layers, shape.num_mlp_layers
    D, H, K, V = shape.embed_dim, shape.num_heads, shape.head_dim, shape.vocab_size
    # Columns of the matrices of query and key, and usually of value and output.
    columns = (H + shape.kv_heads) * K * (2 if shape.value_projections else 1)
    map_rows = L * H * T
    operations = [
        Operation("token embedding", T, V, 2 * T * V * D, EMBEDDING_ELEMENT * (T * V)),
        _normalization("attention normalization", shape.normalization, L * T, D),
        # The width counts the outputs of query, key and value, and the inputs of the output matrix.
        Operation("attention projections", L * T, columns, 2 * L * T * columns * D),
        _normalization(
            "query and key normalization", shape.qk_normalization, L * T * (H + shape.kv_heads), K
        ),
        _temperature(shape, L * T),
        Operation("scores", map_rows, T, 2 * map_rows * T * K),
        _transform(shape, map_rows, T),
        Operation(
            "softmax", map_rows, T, 0, SOFTMAX_ELEMENT * (map_rows * T) + SOFTMAX_ROW * map_rows
        ),
        Operation("mixing of values", map_rows, K, 2 * map_rows * T * K),
        _normalization(
            "MLP normalization", shape.mlp_normalization or shape.normalization, L_mlp * T, D
        ),
        _mlp(shape, L_mlp * T),
        _activation(shape, T),
        _gate(shape, L_mlp * T),
        _normalization("final normalization", shape.final_normalization, T, D),
        Operation("output head", T, V, 2 * T * V * D),
    ]
    return tuple(operation for operation in operations if operation.elements)


def flops_of(operations: Iterable[Operation], *names: str) -> int:
    """FLOPs of the operations with these names."""
    return sum(operation.flops for operation in operations if operation.name in names)


def published_mlp_flops(shape: DecoderShape, num_tokens: int) -> int:
    """FLOPs of all MLPs as the papers' tables count them: 4 L' T D F, or 2 L' T D² if fused.

    A gated MLP, which no table has, takes 6 L' T D F. One entry of the tables differs: 7.3e9 at 12
    layers and T 512, for which the formula gives 7.248e9.
    """
    return flops_of(count_operations(shape, num_tokens), "MLP matrices")


def published_attention_flops(shape: DecoderShape, num_tokens: int) -> int:
    """FLOPs of attention as the tables of arXiv 2410.13060 and 2501.03489 count them.

    8 L T D² + 3 L T² D, or 4 L T D² + 2 L T² D without value and output matrices. By the usual
    count, the two products of a map take 4 L T² D. No text states the formula: it was derived from
    the tables, and gives every entry to the printed digits.
    """
    square = shape.num_layers * num_tokens**2 * shape.num_heads * shape.head_dim
    of_map = 3 if shape.value_projections else 2
    projections = flops_of(count_operations(shape, num_tokens), "attention projections")
    return projections + of_map * square


def _normalization(name: str, kind: Normalization, rows: int, width: int) -> Operation:
    element = NORMALIZATION_ELEMENT.get(kind)
    if element is None:
        return Operation(f"{name} ({kind})", rows, width, 0, None)
    if element == NOTHING:
        return Operation(name, 0, width)
    primitives = element * (rows * width) + NORMALIZATION_ROW * rows
    return Operation(f"{name} ({kind})", rows, width, 0, primitives)


def _transform(shape: DecoderShape, rows: int, width: int) -> Operation:
    name = f"attention transform ({shape.attention_transform})"
    return Operation(name, 0 if shape.attention_transform == "none" else rows, width, 0, None)


def _temperature(shape: DecoderShape, rows: int) -> Operation:
    """Queries times 1 / t, a secret of the model's owner; one t per head folds into the matrix."""
    width = shape.num_heads * shape.head_dim
    if shape.softmax_temperature != "head_position":
        return Operation("softmax temperature", 0, width)
    return Operation("softmax temperature", rows, width, 0, Primitives(products=rows * width))


def _mlp(shape: DecoderShape, rows: int) -> Operation:
    D, F = shape.embed_dim, shape.mlp_dim
    if shape.mlp == "fused":
        return Operation("MLP matrices", rows, D, 2 * rows * D * D)
    inwards = 2 if shape.mlp == "gated" else 1
    return Operation("MLP matrices", rows, inwards * F + D, 2 * (inwards + 1) * rows * D * F)


def _gate(shape: DecoderShape, rows: int) -> Operation:
    """The activation times x W_in: both factors are secret, whatever the activation is."""
    rows, width = rows if shape.mlp == "gated" else 0, shape.mlp_dim
    return Operation("gate", rows, width, 0, Primitives(products=rows * width))


def _activation(shape: DecoderShape, num_tokens: int) -> Operation:
    name = f"activation ({shape.activation})"
    if not shape.num_activations:
        return Operation(name, 0, shape.mlp_dim)
    rows = shape.num_mlp_layers * num_tokens
    element = ACTIVATION_ELEMENT.get(shape.activation)
    primitives = None if element is None else element * (rows * shape.mlp_dim)
    return Operation(name, rows, shape.mlp_dim, 0, primitives)
