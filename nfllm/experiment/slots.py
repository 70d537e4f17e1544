"""Slots for simultaneous runs, each of one accelerator or one core of a CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping

_DEVICE_QUERY = """
import json, jax
devices = jax.local_devices()
print(json.dumps([devices[0].platform, len(devices), devices[0].device_kind]))
"""

# Huge pages for large buffers, instead of thousands of page faults a step.
_CPU_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Environment variables for one run, and the CPU cores that it is bound to (None: any)."""

    environment: Mapping[str, str]
    cores: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """A description of the devices, and the slots."""

    device: str
    slots: tuple[Slot, ...]


def find_machine(jobs: int | None = None) -> Machine:
    """The devices of this machine, found by another process, so that this one does not hold them.

    Args:
      jobs: the most slots to use.

    Raises:
      RuntimeError: JAX finds no device; the message is JAX's.
    """
    command = [sys.executable, "-c", _DEVICE_QUERY]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"JAX finds no device: {answer.stderr.strip().splitlines()[-1]}")
    platform, count, device = json.loads(answer.stdout.strip().splitlines()[-1])
    slots: list[Slot]
    if platform == "gpu":
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = shown.split(",") if shown else [str(i) for i in range(count)]
        slots = [Slot({"CUDA_VISIBLE_DEVICES": name}) for name in names]
    elif platform == "cpu" and hasattr(os, "sched_setaffinity"):
        # Two small runs at once on a core each are faster than one after the other on both cores.
        environment = {key: os.environ.get(key, value) for key, value in _CPU_ENVIRONMENT.items()}
        cores = sorted(os.sched_getaffinity(0))
        slots = [Slot(environment, (core,)) for core in cores]
        device = f"{len(cores)} cores, {_processor()}"
    else:  # one program uses all devices of a TPU host
        slots = [Slot({})]
    return Machine(device, tuple(slots[:jobs]))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            found = [line.partition(":")[2].strip() for line in file if line.startswith("model n")]
        return found[0]
    except (OSError, IndexError):
        return "unknown processor"
