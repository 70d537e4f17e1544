"""The version of nfllm, for a checkout even if it is not installed."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def nfllm_version() -> str:
    """The version of the checkout, of the installed package, or "unknown", in this order."""
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "nfllm":
            return project["version"]
    try:
        return importlib.metadata.version("nfllm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
