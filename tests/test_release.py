"""Files that say which version this is agree, and the workflow tests what is promised."""

import re
import tomllib
from pathlib import Path

import nfllm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_files_name_one_version() -> None:
    citation = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation == [PROJECT["version"]]
    assert changes[0] == PROJECT["version"]
    assert nfllm.__version__ == PROJECT["version"]


def test_the_workflow_runs_every_python_and_jax_that_is_promised() -> None:
    """Python in [3.11, 3.14) and jax in [0.10, 0.12); jax 0.11 has no wheel for Python 3.11."""
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    pairs = set(re.findall(r'\{ python: "([\d.]+)", jax: "?([\w.]+)"? \}', workflow))
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    pythons = {f"3.{minor}" for minor in range(int(low), int(high))}
    (jax,) = [line for line in PROJECT["dependencies"] if line.startswith("jax>")]
    low, high = re.findall(r"0\.(\d+)", jax)
    versions = {f"0.{minor}" for minor in range(int(low), int(high))}
    pinned = re.search(r"^jax==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert pinned[1] in versions
    promised = {(python, version) for python in pythons for version in versions}
    tested = {(python, pinned[1] if version == "pinned" else version) for python, version in pairs}
    assert tested == promised - {("3.11", "0.11")}
