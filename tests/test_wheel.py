"""An installed wheel does without the checkout whatever the checkout does."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nfllm.config import files

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_in_the_wheel():
    found = {path.parent for path in (ROOT / "nfllm").rglob("*.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in found}
    assert set(SETUPTOOLS["packages"]) == names | set(SETUPTOOLS["package-dir"])


def test_shipped_configs_are_found_in_any_folder_and_ones_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.load_config("configs/gpt2_codeparrot.py:sm+g").model.activation == "gelu"
    own = tmp_path / "configs" / "gpt2_codeparrot.py"
    own.parent.mkdir()
    own.write_text(
        "from configs.default import get_config as default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.activation = 'silu'\n"
        "    return config\n"
    )
    assert files.load_config("configs/gpt2_codeparrot.py").model.activation == "silu"


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(tmp_path):
    source, installed, here = (tmp_path / name for name in ("source", "site-packages", "here"))
    source.mkdir()
    here.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nfllm", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", installed, source], check=True)
    shutil.copy(ROOT / "tests" / "wheel.py", here)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "wheel.py"], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
