"""Examples in docstrings and guides run, and docstrings say what reference pages are read for."""

import contextlib
import doctest
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nfllm

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs"


def _modules_with_examples() -> list[str]:
    files = sorted((ROOT / "nfllm").rglob("*.py"))
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return [
        name.removesuffix(".__init__")
        for name, file in zip(names, files, strict=True)
        if ">>> " in file.read_text()
    ]


@pytest.fixture
def small_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write files into the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small_run_directory")
@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


@pytest.mark.usefixtures("small_run_directory")
@pytest.mark.parametrize("guide", sorted(PAGES.rglob("*.md")), ids=lambda path: path.stem)
def test_examples_in_guides_give_what_they_show(guide: Path) -> None:
    if ">>> " not in guide.read_text():
        pytest.skip("has no example")
    result = doctest.testfile(str(guide), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert not result.failed


def _functions_of_arrays() -> dict[str, Callable[..., Any]]:
    functions = {name: getattr(nfllm.analysis, name) for name in nfllm.analysis.__all__}
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(inspect.unwrap(function)) and _array_parameters(function)
    }


def _array_parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that may be arrays."""
    source = inspect.getsource(inspect.unwrap(function))
    signature = re.search(r"def \w+\((.*?)\) ->", source, re.DOTALL)
    assert signature is not None
    return re.findall(r"(\w+): (?:Arrays|ArrayLike|jax\.Array)\b", signature[1])


def _section(doc: str, title: str) -> str:
    """The text of a section of a docstring; empty where it has none."""
    found = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", doc + "\n", re.MULTILINE)
    return found[1] if found else ""


def _entry(section: str, name: str) -> str:
    found = re.search(rf"^  \*?{name}: (.*\n(?:    .*\n)*)", section, re.MULTILINE)
    return found[1] if found else ""


SHAPE = re.compile(r"`\[[^\]]*\]`|\bshape\b|\bThe first `keep` axes\b")
TYPE = re.compile(r"\bfloat32\b|\bintegers\b|\bbooleans\b|`jax\.numpy`")
UNIT = re.compile(r"\bnats\b|\bshares?\b|\bunits?\b|\bnumber of\b|\bbetween\b|`jax\.numpy`")


@pytest.mark.parametrize("name", _functions_of_arrays())
def test_docstrings_state_the_shapes_and_units_of_arrays(name: str) -> None:
    function = _functions_of_arrays()[name]
    doc = inspect.getdoc(function) or ""
    arguments, returns = _section(doc, "Args"), _section(doc, "Returns")
    key_of_random_numbers = {"key"}
    for parameter in set(_array_parameters(function)) - key_of_random_numbers:
        assert SHAPE.search(_entry(arguments, parameter)), f"{parameter}: which shape?"
    for what, pattern in {"shape": SHAPE, "type": TYPE, "unit": UNIT}.items():
        assert pattern.search(returns) or what == "shape" and "numpy" in returns, (
            f"{name} returns: which {what}?"
        )
    assert _section(doc, "Example"), f"{name} has no example"


def test_the_sections_of_a_docstring_are_found() -> None:
    doc = "Does.\n\nArgs:\n  x: `[T]` a,\n    b.\n  y: c.\n\nReturns:\n  `[T]` float32."
    assert _entry(_section(doc, "Args"), "x") == "`[T]` a,\n    b.\n"
    assert _entry(_section(doc, "Args"), "z") == ""
    assert _section(doc, "Returns") == "  `[T]` float32.\n"
    assert _section(doc, "Raises") == ""


@pytest.mark.parametrize("module", ["nfllm", "nfllm.analysis", "nfllm.report", "nfllm.convert"])
def test_every_public_name_has_a_page_and_a_docstring(module: str) -> None:
    names = set(importlib.import_module(module).__all__)
    listed = re.findall(r"^   (\w+)$", "".join(p.read_text() for p in PAGES.rglob("*.md")), re.M)
    submodules = {name for name in names if inspect.ismodule(getattr(nfllm, name, None))}
    constants = {name for name in names if name.isupper()}
    assert names - submodules - constants <= set(listed)
    for name in names - constants:
        value = getattr(importlib.import_module(module), name)
        assert value.__doc__, name
        assert value.__doc__ is not dict.__doc__ or name == "Ledger"


def test_pages_list_no_name_twice() -> None:
    for page in PAGES.rglob("*.md"):
        listed = re.findall(r"^   (\w+)$", page.read_text(), re.M)
        assert len(listed) == len(set(listed)), page
