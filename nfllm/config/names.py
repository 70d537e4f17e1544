"""The names that a config can give a part: nfllm's own, and those that were registered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

Statistics = Literal["norm-free", "frozen", "normalised"]
"""What a part divides its input by, when a trained model is used.

norm-free: nothing that is computed from the input. frozen: statistics that were measured before.
normalised: statistics of the input itself, as LayerNorm does.
"""


class Source(NamedTuple):
    """Where a name was registered, and the hash of that file; empty where it cannot be read."""

    file: str
    line: int
    sha256: str


class Part(NamedTuple):
    """What is declared of a part; `source` is None of nfllm's own."""

    statistics: Statistics = "norm-free"
    source: Source | None = None


class Names:
    """The names of one kind of part, in the order in which they were declared."""

    def __init__(self, kind: str, own: Mapping[str, Statistics]) -> None:
        self.kind = kind
        self._parts = {name: Part(statistics) for name, statistics in own.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def declare(self, name: str, part: Part) -> None:
        """Makes `name` a value of the keys of this kind."""
        self._parts[name] = part


ACTIVATION_NAMES = Names(
    "activation",
    dict.fromkeys(
        (
            "gelu",
            "gelu_tanh",
            "relu",
            "leaky_relu",
            "learnable_leaky_relu",
            "silu",
            "relu_squared",
            "helu",
            "identity",
            "half_identity",
        ),
        "norm-free",
    ),
)
NORMALIZATION_NAMES = Names(
    "normalization",
    {
        "layernorm": "normalised",
        "none": "norm-free",
        "rmsnorm": "normalised",
        "dyt": "norm-free",
        "derf": "norm-free",
    },
)

Activation = Annotated[str, ACTIVATION_NAMES]
Normalization = Annotated[str, NORMALIZATION_NAMES]


def strongest(declared: Iterable[Statistics]) -> Statistics:
    """What parts amount to together: normalised if one is, else frozen if one is."""
    return max(declared, key=("norm-free", "frozen", "normalised").index, default="norm-free")


_before_devices = False


@contextlib.contextmanager
def before_devices() -> Iterator[None]:
    """Within it, nothing that is registered may touch a device.

    A config file runs before a command has said which devices there are.
    """
    global _before_devices
    outer, _before_devices = _before_devices, True
    try:
        yield
    finally:
        _before_devices = outer


def is_before_devices() -> bool:
    """Whether devices are still to be chosen."""
    return _before_devices
