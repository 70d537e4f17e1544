"""The primitive operations of secure computation, and how many each nonlinearity needs.

Their number does not depend on a network or a machine. The numbers are those of PUMA's protocols
(arXiv 2307.12533): GELU is a polynomial on each of four intervals (its algorithm 1); the
exponential in softmax is (1 + x/32)^32 above a cut-off at -14, which takes five squares. For other
activations and normalizations, the numbers follow from PUMA's steps if PUMA has all steps needed.
Other protocols have other numbers.
"""

from __future__ import annotations

import dataclasses

from nfllm.config import Activation, Normalization
from nfllm.config.names import FROZEN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Primitives:
    """The number of primitive operations on secret values, by kind.

    Attributes:
      equalities: tests of an id against one token of the vocabulary.
      comparisons: tests of a value against a bound.
      maxima: maxima over the entries of a row; one over n entries takes n - 1 further comparisons.
      squares: of elements.
      products: of two elements, or of an element and a secret weight; those of matrices are FLOPs.
      bit_products: of an element with the outcome of a comparison.
      reciprocals: 1 / x, of rows.
      inverse_roots: 1 / sqrt(x), of rows.
    """

    equalities: int = 0
    comparisons: int = 0
    maxima: int = 0
    squares: int = 0
    products: int = 0
    bit_products: int = 0
    reciprocals: int = 0
    inverse_roots: int = 0

    def __add__(self, other: Primitives) -> Primitives:
        return Primitives(**{k: n + getattr(other, k) for k, n in dataclasses.asdict(self).items()})

    def __mul__(self, times: int) -> Primitives:
        return Primitives(**{k: n * times for k, n in dataclasses.asdict(self).items()})


NOTHING = Primitives()
EMBEDDING_ELEMENT = Primitives(equalities=1)
SOFTMAX_ELEMENT = Primitives(comparisons=1, squares=5, products=1, bit_products=1)
SOFTMAX_ROW = Primitives(maxima=1, reciprocals=1)

_GELU = Primitives(comparisons=3, squares=3, products=1, bit_products=3)
_RELU = Primitives(comparisons=1, bit_products=1)

ACTIVATION_ELEMENT: dict[Activation, Primitives | None] = {
    "gelu": _GELU,
    "gelu_tanh": _GELU,
    "gelu_puma": _GELU,
    "relu": _RELU,
    # x times a public slope, and one bit product: slope x + (1 - slope) [x > 0] x.
    "leaky_relu": _RELU,
    # A learned slope is a secret of the model's owner.
    "learnable_leaky_relu": _RELU + Primitives(products=1),
    "silu": None,
    "relu_squared": _RELU + Primitives(squares=1),
    "helu": _RELU,
    "identity": NOTHING,
    "half_identity": NOTHING,
    "evonorm_s0": None,
}
"""Primitives of one element; None: nfllm knows no published protocol."""

_STATISTICAL = Primitives(squares=1, products=2)

NORMALIZATION_ELEMENT: dict[Normalization, Primitives | None] = {
    "layernorm": _STATISTICAL,
    "rmsnorm": _STATISTICAL,  # the mean that LayerNorm subtracts is a sum, and free
    "none": NOTHING,
    "dyt": None,
    "derf": None,
    "evonorm_s0": None,
    "isru": None,
    "arctan": None,
    "hardtanh": None,
    "expsign": None,
    FROZEN: NOTHING,  # affine: it folds into the matrices
}
"""Primitives of one element; each row of LayerNorm and RMSNorm also takes an inverse root."""

NORMALIZATION_ROW = Primitives(inverse_roots=1)
