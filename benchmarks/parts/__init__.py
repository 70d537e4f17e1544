"""The parts of benchmarks/accelerator.py, in the order in which they run.

Each is a module here with `run(rows, rehearse)`, which adds rows of numbers to `rows`.
"""

from typing import NamedTuple


class Part(NamedTuple):
    """Time limit of a part in seconds, and the environment variables that it needs."""

    limit_seconds: float
    environment: dict[str, str]


_MOST_MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}

PARTS = {
    "facts": Part(40, {}),
    "numbers": Part(110, {}),
    "attention": Part(75, _MOST_MEMORY),
    "step": Part(215, _MOST_MEMORY),
    # JAX and torch share the device's memory.
    "peers": Part(160, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
    "job": Part(130, {}),
    # The part's child processes use the device; the part itself must not.
    "paper": Part(600, {"JAX_PLATFORMS": "cpu"}),
}
