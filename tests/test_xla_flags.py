"""XLA flags in real processes: XLA aborts the one that gives it a flag it does not know."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nfllm.config import ConfigError
from nfllm.training.xla_flags import use_xla_flags

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from nfllm.training.xla_flags import use_xla_flags
use_xla_flags(sys.argv[1])
import jax
jax.jit(lambda x: x + 1)(1.0)
"""


def _run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_an_unknown_flag_is_an_error_of_the_config_and_not_an_abort(tmp_path):
    flags = "--config.parallel.xla_flags=--xla_no_such_flag=true"
    process = _run(ROOT / "train.py", f"--workdir={tmp_path}", flags)
    assert process.returncode == 1
    (error,) = process.stderr.splitlines()
    assert error.startswith("error: parallel.xla_flags='--xla_no_such_flag=true': XLA does not st")
    assert "Unknown flag" in error


def test_a_known_flag_takes_effect(tmp_path):
    process = _run("-c", SCRIPT, f"--xla_dump_to={tmp_path}")
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.glob("*lambda*"))


def test_flags_that_would_come_too_late_are_refused():
    jax.devices()
    with pytest.raises(ConfigError, match=r"but this process has already used JAX"):
        use_xla_flags("--xla_dump_to=x")
    use_xla_flags("")
