"""The division of a batch among devices and micro-batches, and of a CPU into devices."""

from __future__ import annotations

import math
import os

import jax

from nfllm.config import Config, ConfigError
from nfllm.model.tuning import tuning


def micro_batches(config: Config, devices: int) -> int:
    """`training.gradient_accumulation`; by default the fastest number that gives the same mean."""
    training = config.training
    if training.gradient_accumulation is not None:
        return training.gradient_accumulation
    tokens = tuning().micro_batch_tokens
    if tokens is None or config.optimizer.accumulation_weighting != "token":
        return 1
    rows = max(1, tokens // config.model.context_length)
    per_device = max(1, training.batch_size // devices)
    return next(
        n for n in range(1, per_device + 1) if per_device % n == 0 and per_device // n <= rows
    )


def check_batch_size(key: str, sequences: int, devices: int, micro_batches: int = 1) -> None:
    """Raises ConfigError unless `sequences` splits evenly into micro-batches over the devices."""
    if sequences % (devices * micro_batches):
        parts = f"{micro_batches} micro-batches on " if micro_batches > 1 else ""
        unit = devices * micro_batches
        nearest = max(unit, unit * round(sequences / unit))
        raise ConfigError(
            f"{key}={sequences} does not divide over {parts}{devices} devices; use a multiple of "
            f"{unit}, such as {nearest}"
        )


def configure_devices(config: Config) -> None:
    """Splits a CPU into `parallel.cpu_devices` devices; call it before the first array is made.

    The default is the largest number, at most one per core, over which the training and the
    evaluation batch divide; 1 if there are several processes; and unchanged if the process has
    already set the number or made devices.

    Raises:
      ConfigError: the process already has another number of devices.
    """
    wanted = config.parallel.cpu_devices
    if wanted is None and _cpu_devices_are_set():
        return
    sequences = math.gcd(
        config.training.batch_size // (config.training.gradient_accumulation or 1),
        config.evaluation.batch_size,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    alone = not jax.distributed.is_initialized()
    most = (cores or 1) if alone else 1
    fitting = max(n for n in range(1, most + 1) if sequences % n == 0)
    try:
        jax.config.update("jax_num_cpu_devices", wanted or fitting)
    except RuntimeError as error:
        found = jax.device_count("cpu")
        if wanted not in (None, found):
            raise ConfigError(
                f"parallel.cpu_devices={wanted}, but this process already has "
                f"{found}; set the key before anything runs on JAX, or leave it unset"
            ) from error


def _cpu_devices_are_set() -> bool:
    return (
        getattr(jax.config, "jax_num_cpu_devices") > 0  # noqa: B009 (mypy knows no config state)
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
