"""The names of parts that a config can choose: nfllm's own, and registered ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final, Literal, NamedTuple

Statistics = Literal["norm-free", "frozen", "normalised"]
"""The kind of statistics by which a part divides its input, when a trained model is used.

norm-free: none that are computed from the input. frozen: statistics measured earlier.
normalised: statistics of the input itself, as LayerNorm does.
"""
STATISTICS: tuple[Statistics, ...] = ("norm-free", "frozen", "normalised")
"""In order, from no statistics to statistics of each input."""


class Source(NamedTuple):
    """Where a name was registered, and the hash of that file; empty if the file cannot be read."""

    file: str
    line: int
    sha256: str


class Part(NamedTuple):
    """The declaration of a part; `source` is None for nfllm's own parts."""

    statistics: Statistics = "norm-free"
    source: Source | None = None


class Names:
    """The names of one kind of part, in the order in which they were declared."""

    def __init__(self, own: Mapping[str, Statistics]) -> None:
        self._parts = {name: Part(statistics) for name, statistics in own.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def sources(self) -> dict[str, Source | None]:
        """Where each name was registered; None for nfllm's own parts."""
        return {name: part.source for name, part in self._parts.items()}

    def declare(self, name: str, part: Part) -> None:
        """Makes `name` a value of the keys of this kind."""
        self._parts[name] = part


POINT_FUNCTIONS = ("dyt", "derf", "isru", "arctan", "hardtanh", "expsign")
"""Normalizations that are point functions f(alpha x)."""

EVONORM = "evonorm_s0"
"""A name of both a normalization and an activation."""

FROZEN: Final = "frozen_layernorm"
"""The normalization whose deviation can be held, so that it can be removed (arXiv 2507.02559)."""

FUSED_ATTENTION: Final = ("xla", "cudnn")
"""Implementations of attention that never form logits or maps."""

ACTIVATION_NAMES = Names(
    {
        "gelu": "norm-free",
        "gelu_tanh": "norm-free",
        "relu": "norm-free",
        "leaky_relu": "norm-free",
        "learnable_leaky_relu": "norm-free",
        "silu": "norm-free",
        "relu_squared": "norm-free",
        "gelu_puma": "norm-free",
        "helu": "norm-free",
        "identity": "norm-free",
        "half_identity": "norm-free",
        EVONORM: "normalised",
    },
)
NORMALIZATION_NAMES = Names(
    {
        "layernorm": "normalised",
        "none": "norm-free",
        "rmsnorm": "normalised",
        EVONORM: "normalised",
        "dyt": "norm-free",
        "derf": "norm-free",
        "isru": "norm-free",
        "arctan": "norm-free",
        "hardtanh": "norm-free",
        "expsign": "norm-free",
        FROZEN: "frozen",
    },
)

ATTENTION_TRANSFORM_NAMES = Names({"none": "norm-free"})

MIXER_STATISTICS: dict[str, Statistics] = {"softmax": "norm-free", "regla": "normalised"}

Activation = Annotated[str, ACTIVATION_NAMES]
Normalization = Annotated[str, NORMALIZATION_NAMES]
AttentionTransform = Annotated[str, ATTENTION_TRANSFORM_NAMES]


def strongest(declared: Iterable[Statistics]) -> Statistics:
    """The class of several parts together: normalised if one is, else frozen if one is."""
    return max(declared, key=STATISTICS.index, default="norm-free")
