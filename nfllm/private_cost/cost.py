"""The cost of one private forward pass, and a lower bound on its time."""

from __future__ import annotations

import dataclasses
import functools

from nfllm.config import ConfigError
from nfllm.private_cost.communication import Communication, communication
from nfllm.private_cost.operations import (
    Operation,
    count_operations,
    published_attention_flops,
    published_mlp_flops,
)
from nfllm.private_cost.primitives import NOTHING, Primitives
from nfllm.private_cost.shape import DecoderShape


@dataclasses.dataclass(frozen=True)
class PrivateCost:
    """The cost of one forward pass of `num_tokens` tokens.

    Attributes:
      operations: exact counts, see `count_operations`.
      communication: fitted bytes, see `communication`.
      published_mlp_flops: FLOPs of the MLPs as counted in the papers' tables.
      published_attention_flops: the same of attention.
    """

    shape: DecoderShape
    num_tokens: int
    operations: tuple[Operation, ...]
    communication: Communication
    published_mlp_flops: int
    published_attention_flops: int

    @property
    def flops(self) -> int:
        """FLOPs of all matrix products, by the usual count."""
        return sum(operation.flops for operation in self.operations)

    @functools.cached_property
    def total(self) -> Primitives:
        """Primitives of all operations, except those `without_protocol`."""
        known = (operation.primitives for operation in self.operations)
        return sum((counts for counts in known if counts is not None), NOTHING)

    @property
    def without_protocol(self) -> tuple[str, ...]:
        """Names of operations without a protocol known to nfllm, and so without primitives."""
        return tuple(o.name for o in self.operations if o.primitives is None)


def private_cost(shape: DecoderShape, num_tokens: int) -> PrivateCost:
    """The known cost of one forward pass of `num_tokens` tokens.

    Raises:
      ConfigError: `num_tokens` is below 1.

    Example:
      >>> import nfllm
      >>> config = nfllm.load_run("runs/default").config  # norm-free ReLU
      >>> cost = private_cost(DecoderShape.from_config(config.model, 256), num_tokens=32)
      >>> cost.flops > cost.total.comparisons > 0
      True
    """
    return PrivateCost(
        shape,
        num_tokens,
        count_operations(shape, num_tokens),
        communication(shape, num_tokens),
        published_mlp_flops(shape, num_tokens),
        published_attention_flops(shape, num_tokens),
    )


def seconds_at_least(
    num_bytes: float,
    *,
    bits_per_second: float,
    round_trip_seconds: float = 0.0,
    num_rounds: int = 0,
) -> float:
    """A lower bound in seconds on an exchange: 8 bytes / bandwidth + rounds x round trip.

    The time of computation is not included. The number of rounds of the protocol behind the fitted
    bytes is not published; SIGMA takes 1,128 for GPT-2 at T = 128 (a third party's measurement).

    Raises:
      ConfigError: a number is negative or NaN, or the bandwidth is 0.
    """
    if not bits_per_second > 0:
        raise ConfigError(f"bits_per_second={bits_per_second} must be greater than 0")
    for name, value in {
        "num_bytes": num_bytes,
        "round_trip_seconds": round_trip_seconds,
        "num_rounds": num_rounds,
    }.items():
        if not value >= 0:
            raise ConfigError(f"{name}={value} must not be negative")
    return 8 * num_bytes / bits_per_second + num_rounds * round_trip_seconds
