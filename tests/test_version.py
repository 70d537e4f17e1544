import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from nfllm import version

ROOT = Path(__file__).parents[1]
STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def _not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("project", "installed", "expected"),
    [
        (ROOT / "pyproject.toml", _not_installed, STATED),  # a checkout on PYTHONPATH
        (ROOT / "nowhere.toml", lambda name: "9.9", "9.9"),  # a wheel
        (ROOT / "nowhere.toml", _not_installed, "unknown"),  # files that somebody has copied
    ],
)
def test_every_way_to_have_it_has_a_version(monkeypatch, project, installed, expected):
    monkeypatch.setattr(version, "_PROJECT", project)
    monkeypatch.setattr(importlib.metadata, "version", installed)
    assert version.nfllm_version() == expected


def test_the_project_of_something_else_beside_the_package_does_not_count(monkeypatch, tmp_path):
    other = tmp_path / "pyproject.toml"
    other.write_text('[project]\nname = "theirs"\nversion = "7"\n')
    monkeypatch.setattr(version, "_PROJECT", other)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert version.nfllm_version() == "9.9"


def test_no_other_file_asks_for_it():
    asking = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "nfllm").rglob("*.py")
        if 'metadata.version("nfllm")' in path.read_text()
    ]
    assert asking == ["nfllm/version.py"]
