"""Several processes as one run: how they find each other, agree, and stop together."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from typing import Any

import jax
from jax.experimental import multihost_utils

from nfllm.config import Config, ConfigError
from nfllm.config.checks import Value
from nfllm.rundir import RunError
from nfllm.trainer import peers

_START_SECONDS = 120
_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 30
# A process may have to prepare a large corpus, on a slow disk.
_PREPARE_SECONDS = 24 * 3600.0


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects this process with the others of its run; call it before any device is used.

    With the three values (or NFLLM_COORDINATOR, NFLLM_NUM_PROCESSES and NFLLM_PROCESS_ID in the
    environment), it connects to `coordinator`. Without them, on a TPU or under `srun` with several
    tasks, JAX finds the other processes itself. Otherwise the run has a single process.

    Args:
      coordinator: HOST:PORT of process 0, the same for all.
      num_processes: the number of processes.
      process_id: the index of this process, from 0.

    Raises:
      ConfigError: some of the three are missing, or `process_id` is out of range.
      RunError: the coordinator cannot be reached.
    """
    values = _from_environment(coordinator, num_processes, process_id)
    if values is None and not _in_a_cluster():
        return
    if values is not None and values["process_id"] > 0:
        _wait_for(values["coordinator_address"])
    # If the heartbeat of one process is missed, all end instead of waiting forever.
    jax.distributed.initialize(
        **(values or {}),
        initialization_timeout=_START_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def is_first() -> bool:
    """Whether this is the process that writes the run directory and prints progress."""
    return jax.process_index() == 0


def check_agreement(config: Config, data_fingerprint: str) -> None:
    """Raises RunError unless all processes have the same config and data, naming what differs."""
    own: dict[str, Value] = {"data fingerprint": data_fingerprint}
    for section, keys in config.to_dict().items():
        own |= {f"{section}.{key}": value for key, value in keys.items()}
    del own["data.data_dir"]  # hosts may keep their data in different places
    everyone = peers.exchange("to prepare its data", own, _PREPARE_SECONDS)
    peers.progress("start")
    for key in own:
        values = [other[key] for other in everyone]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{value!r} in process {i}" for i, value in enumerate(values))
            raise RunError(
                f"the processes differ in {key}: {listed}; start all of them with one config and "
                "one corpus"
            )


def stop_agreed(step: int) -> bool:
    """Whether all processes stop after `step` because one got SIGTERM; call it after every step."""
    peers.progress(f"step {step}")
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _from_environment(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any] | None:
    environment = os.environ
    address = environment.get("NFLLM_COORDINATOR") if coordinator is None else coordinator
    count = _whole_number("NFLLM_NUM_PROCESSES") if num_processes is None else num_processes
    own = _whole_number("NFLLM_PROCESS_ID") if process_id is None else process_id
    if address is None and count is None and own is None:
        return None
    if address is None or count is None or own is None:
        raise ConfigError(
            f"--coordinator={address}, --num_processes={count}, --process_id={own}: give all "
            "three, or none"
        )
    if not 0 <= own < count:
        raise ConfigError(f"--process_id={own} is not one of --num_processes={count} (from 0)")
    if not address.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator={address} has no port; write HOST:PORT")
    return {"coordinator_address": address, "num_processes": count, "process_id": own}


def _whole_number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ConfigError(f"{name}={text!r} must be a whole number")
    return int(text)


def _wait_for(address: str) -> None:
    """Waits until something listens at `address`; otherwise JAX would abort the process."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"--coordinator={address} could not be reached within {_START_SECONDS} s "
                    f"({error}); check the address, that its port is open, and that process 0 was "
                    "started"
                ) from error
        time.sleep(0.2)


def _in_a_cluster() -> bool:
    """Whether JAX can find the other processes by itself."""
    wants_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    tpu = importlib.util.find_spec("libtpu") is not None and not wants_cpu
    # A batch script has the other variables too; only processes started by `srun` have this one.
    started_by_srun = "SLURM_STEP_NODELIST" in os.environ
    slurm = started_by_srun and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return tpu or slurm
