"""Bytes that two parties exchange for one forward pass: a fit to published rows, and its limits.

No per-operation figure of the protocol (SecretFlow SPU, BumbleBee) behind the tables of arXiv
2410.13060 and 2501.03489 is published. The constants below are a weighted least-squares fit, with
seven coefficients, to the communication of 27 rows of those tables. All are GPT-2 of width 768 with
12 heads, 12 or 18 layers, and T of 128, 256 or 512. The fit meets the four rows SM+LN+G, SM+LN+R,
SM+ScFFN and SM+ScFuFFN at T 128 within 0.1%, the other rows within 1%, and SM+ScFuFFN i6 at T 128,
which saves more than its linear maps can cost, within 1.6%.

Outside these rows the formula gives no number: for another width, head width or vocabulary, a
shorter or longer sequence, a normalization or an activation that no row has. No row has LayerNorm
alone or an activation alone. Their terms are estimates, and marked as such: a comparison takes 86
bytes in OpenBumbleBee (690.5 bits in a 64-bit ring), rounded up to 110 with the product after it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from nfllm.private_cost.shape import DecoderShape

Basis = Literal["fit", "estimate"]

LENGTHS = (128, 512)
"""The shortest and longest fitted sequence, in tokens."""
WIDTH, HEAD_WIDTH = 768, 64
"""D and K of every fitted row."""

# Bytes.
_SOFTMAX_ELEMENT = 1668.2  # per element of a map, with its share of the map's two products
_GELU_MINUS_RELU = 3365.6  # per hidden unit and token
_NORMS_AND_RELU = 1_612_390  # per layer and token: two LayerNorms, and ReLU on 4 D units
_LINEAR_MAP = 49_233  # per D x D matrix and token
_REST_OF_LAYER = 311_762  # per layer and token
_EMBEDDING_AND_HEAD = {(50_000, 50_304): 12_775_972, (16_384, 16_384): 6_731_639}  # per token

_RELU = 110.0
_LAYERNORM_ROW = (_NORMS_AND_RELU - _RELU * 4 * WIDTH) / 2
_ACTIVATION = {
    "relu": _RELU,
    "helu": _RELU,
    "leaky_relu": _RELU,
    "gelu": _RELU + _GELU_MINUS_RELU,
    "gelu_tanh": _RELU + _GELU_MINUS_RELU,
}


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the formula: `count` operations of `bytes_each` bytes.

    `basis` is `fit`, or `estimate` if the fit alone does not determine the term.
    """

    name: str
    count: int
    bytes_each: float
    basis: Basis = "fit"

    @property
    def bytes(self) -> float:
        """Bytes of the term."""
        return self.count * self.bytes_each


@dataclasses.dataclass(frozen=True)
class Communication:
    """Bytes exchanged, term by term.

    Attributes:
      terms: the known terms.
      unknown: reasons why other terms are unknown; empty if all are known.
    """

    terms: tuple[Term, ...]
    unknown: tuple[str, ...]

    @property
    def total_bytes(self) -> float | None:
        """Bytes of one forward pass; None if a term is unknown."""
        return None if self.unknown else sum(term.bytes for term in self.terms)

    @property
    def basis(self) -> Basis:
        """`fit`, or `estimate` if a term is an estimate."""
        return "estimate" if any(term.basis == "estimate" for term in self.terms) else "fit"


def communication(shape: DecoderShape, num_tokens: int) -> Communication:
    """The bytes that two parties exchange, by the fitted formula; see the module for its limits.

    .. code-block:: text

        bytes = 1668.2 L H T² + 3365.6 [GELU] L T F + 1612390 [LayerNorms and activation] L T
              + 49233 (8 or 1) L' T + 49233 (4 or 2) L T + 311762 L T + 12775972 [V = 50K] T

    A learned softmax temperature and the scalars of a scaled MLP add nothing, as in the tables. No
    text states whether the published models have a final normalization; if they do, its bytes are
    part of the last term.
    """
    outside = _outside(shape, num_tokens)
    if outside:
        return Communication((), outside)
    T, L = num_tokens, shape.num_layers
    maps = shape.num_attention_maps * L
    mlp_maps = shape.num_mlp_layers * (1 if shape.mlp == "fused" else 8)
    terms = [
        Term("softmax and its products", L * shape.num_heads * T**2, _SOFTMAX_ELEMENT),
        Term("linear maps of attention", maps * T, _LINEAR_MAP),
        Term("linear maps of the MLP", mlp_maps * T, _LINEAR_MAP),
        Term("rest of a layer", L * T, _REST_OF_LAYER),
    ]
    unknown = []
    if shape.normalization == "layernorm" and _is_bundle(shape):
        terms.append(Term("two LayerNorms and ReLU", L * T, _NORMS_AND_RELU))
        if shape.activation == "gelu":
            terms.append(Term("GELU beyond ReLU", T * shape.num_activations, _GELU_MINUS_RELU))
    else:
        if shape.normalization == "layernorm":
            rows = (L + shape.num_mlp_layers) * T
            terms.append(Term("LayerNorm", rows, _LAYERNORM_ROW, "estimate"))
        elif shape.normalization != "none":
            unknown.append(f"no row has {shape.normalization} as normalization")
        if shape.num_activations and shape.activation in _ACTIVATION:
            name = f"activation ({shape.activation})"
            each = _ACTIVATION[shape.activation]
            terms.append(Term(name, T * shape.num_activations, each, "estimate"))
        elif shape.num_activations:
            unknown.append(f"no row has {shape.activation} as activation")
    for (low, high), each in _EMBEDDING_AND_HEAD.items():
        if low <= shape.vocab_size <= high:
            terms.append(Term("embedding and output head", T, each))
            break
    else:
        unknown.append(
            f"vocabularies fitted have 50,000 or 16,384 tokens, not {shape.vocab_size:,}"
        )
    return Communication(tuple(term for term in terms if term.count), tuple(unknown))


def _outside(shape: DecoderShape, num_tokens: int) -> tuple[str, ...]:
    """Reasons why the formula does not hold for the shape; empty if it holds."""
    shortest, longest = LENGTHS
    hidden = 4 * WIDTH
    reasons = {
        f"fitted at width {WIDTH}, not {shape.embed_dim}": shape.embed_dim != WIDTH,
        f"fitted at head width {HEAD_WIDTH}, not {shape.head_dim}": shape.head_dim != HEAD_WIDTH,
        f"fitted at {shortest} to {longest} tokens, not {num_tokens}": not (
            shortest <= num_tokens <= longest
        ),
        f"fitted with an MLP width of {hidden}, not {shape.mlp_dim}": shape.mlp == "two_layer"
        and shape.num_mlp_layers > 0
        and shape.mlp_dim != hidden,
        "no row has grouped heads of keys and values": shape.kv_heads != shape.num_heads,
        "no row has a gated MLP": shape.mlp == "gated" and shape.num_mlp_layers > 0,
        f"no row has {shape.mlp_normalization} before the MLP alone": (
            shape.mlp_normalization is not None
        ),
        f"no row has {shape.attention_transform} before the softmax": (
            shape.attention_transform != "none"
        ),
        "no row has normalized queries and keys": shape.qk_normalization != "none",
        "no row has rotary positions": shape.rotary_dim > 0,
        f"no row has {shape.final_normalization} as final normalization": (
            shape.final_normalization not in ("layernorm", "none")
        ),
    }
    return tuple(reason for reason, holds in reasons.items() if holds)


def _is_bundle(shape: DecoderShape) -> bool:
    """Whether every layer has an MLP with ReLU or GELU, as in the rows with LayerNorm."""
    is_whole = shape.num_mlp_layers == shape.num_layers and shape.num_activations > 0
    return is_whole and shape.activation in ("relu", "gelu")
