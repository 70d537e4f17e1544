"""XLA flags from the config, tried in a process of their own first.

XLA aborts the process that gives it a flag it does not know, and its flags come and go between
releases. None is set by default: no set was measured to be faster. Worth a try:

  several GPUs, fsdp: --xla_gpu_enable_latency_hiding_scheduler=true, which overlaps the gathering
    of parameters with products
  one GPU: --xla_gpu_autotune_level=4 tries more kernels for each product while compiling
"""

import os
import subprocess
import sys

from nfllm.config import ConfigError

_TRIAL = "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"


def use_xla_flags(flags: str) -> None:
    """Adds `flags` to XLA's, for all programs of this process; must run before the first array.

    Args:
      flags: as in the environment variable XLA_FLAGS, separated by spaces; those that it has
        already are left alone.

    Raises:
      ConfigError: XLA does not start with them, or has started in this process.
    """
    present = os.environ.get("XLA_FLAGS", "").split()
    new = [flag for flag in flags.split() if flag not in present]
    if not new:
        return
    from jax._src import xla_bridge  # JAX does not say elsewhere whether it has started

    if xla_bridge.backends_are_initialized():
        raise ConfigError(
            f"parallel.xla_flags={flags!r}, but this process has already used JAX, which reads "
            "XLA's flags once; set the key before anything runs on JAX, or leave it empty"
        )
    environment = {
        **os.environ,
        "XLA_FLAGS": " ".join([*present, *new]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    trial = subprocess.run(
        [sys.executable, "-c", _TRIAL], env=environment, capture_output=True, text=True
    )
    if trial.returncode:
        said = [line for line in trial.stderr.splitlines() if "flag" in line.lower()]
        reason = (said or trial.stderr.splitlines() or ["no message"])[0].strip()
        raise ConfigError(
            f"parallel.xla_flags={flags!r}: XLA does not start with them ({reason}); correct or "
            "remove the flag"
        )
    os.environ["XLA_FLAGS"] = environment["XLA_FLAGS"]
