"""The files of published numbers in this package."""

from __future__ import annotations

import functools
import importlib.resources
import json
from typing import Any


@functools.cache
def published_numbers(file: str) -> dict[str, Any]:
    """The numbers in the JSON file `file` of this package, which says where each comes from."""
    text = importlib.resources.files("nfllm.papers").joinpath(file).read_text("utf-8")
    numbers: dict[str, Any] = json.loads(text)
    return numbers
