"""Learning-rate schedules: linear warmup, then polynomial, cosine or no decay to a floor."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfllm.config import OptimizerConfig

Schedule = Callable[[jax.Array | int], jax.Array]


def warmup_length(config: OptimizerConfig, total_steps: int) -> int:
    """Warmup in steps; a fraction is rounded up, as in transformers, but leaves one step."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return min(math.ceil(config.warmup_fraction * total_steps), total_steps - 1)


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """Learning rate of update k = 0, 1, ... of N = `total_steps`, with warmup of W.

    Warmup: peak k / W with `warmup_from_zero` (transformers' rule, whose first update does
    nothing), else peak (k + 1) / W. Then, with r = (N - k) / (N - W) falling from 1 to 0,
    polynomial: floor + (peak - floor) r^power; cosine: floor + (peak - floor) (1 - cos πr) / 2;
    constant: peak. From N on, r stays 0.

    Example:
      >>> config = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, warmup_from_zero=True)
      >>> schedule = make_schedule(config, total_steps=10)
      >>> [float(schedule(k)) for k in (0, 1, 2)]
      [0.0, 0.0005, 0.001]
    """
    warmup = warmup_length(config, total_steps)
    peak, floor = config.learning_rate, config.final_learning_rate
    offset = 0 if config.warmup_from_zero else 1

    def schedule(step: jax.Array | int) -> jax.Array:
        k = jnp.asarray(step, jnp.float32)
        # (N - k) is exact in float32; 1 - (k - W)/(N - W) would cancel near the end.
        remaining = jnp.clip((total_steps - k) / max(total_steps - warmup, 1), 0.0, 1.0)
        if config.schedule == "polynomial":
            decayed = floor + (peak - floor) * remaining**config.schedule_power
        elif config.schedule == "cosine":
            decayed = floor + (peak - floor) * (1 - jnp.cos(jnp.pi * remaining)) / 2
        else:
            decayed = jnp.full_like(k, peak)
        rising = peak * (k + offset) / max(warmup, 1)
        return jnp.where(k < warmup, rising, decayed)

    return schedule
