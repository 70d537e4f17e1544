"""Examples in docstrings and guides run, and docstrings say what reference pages are read for."""

import doctest
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from random_model import random_model
from tiny import make_corpus, tiny_config

import nfllm
from nfllm.convert import Checkpoint, save_checkpoint
from nfllm.rundir import METRICS_FILE
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.program import Program
from nfllm.trainer.record import write_run

pytestmark = pytest.mark.slow

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


DECIMAL = re.compile(r"-?\d+\.\d*(?:e[-+]?\d+)?")


class _Rounded(doctest.OutputChecker):
    """Decimal numbers are compared to the precision in which the example writes them."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        want_text, got_text = ("".join(DECIMAL.sub("0.", text).split()) for text in (want, got))
        return want_text == got_text and all(
            abs(float(expected) - float(found)) <= 0.51 * _last_digit(expected)
            for expected, found in zip(DECIMAL.findall(want), DECIMAL.findall(got), strict=True)
        )


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.split(".")[1]))


def run_examples(tests: list[doctest.DocTest]) -> doctest.TestResults:
    runner = doctest.DocTestRunner(checker=_Rounded(), optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    return runner.summarize()


@pytest.fixture(scope="module")
def folder_with_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples find in the working directory: the runs that they speak of, but tiny
    and untrained."""
    folder = tmp_path_factory.mktemp("examples")
    config = tiny_config(make_corpus(folder / "corpus"), folder / "data")
    program, path = Program(config), epath.Path(folder / "runs" / "default")
    path.mkdir(parents=True)
    state = program.init_state()
    write_run(path, program, state.params)
    with Checkpoints(path, config.checkpoint) as checkpoints:
        whole = program.placement.to_checkpoint(state)
        checkpoints.save(whole, program.dataset.fingerprint)
        checkpoints.wait()
    for name in ("relu", "gelu"):
        (folder / "runs" / name).mkdir()
        (folder / "runs" / name / METRICS_FILE).touch()
    model, params = random_model(0.02, normalization="layernorm", activation="gelu")
    save_checkpoint(folder / "gpt2", Checkpoint(model.config, model.vocab_size, params))
    return folder


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(
    name: str, folder_with_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_runs)
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    result = run_examples(tests)
    assert result.attempted
    assert not result.failed


def test_examples_are_written_so_that_they_run() -> None:
    for file in (ROOT / "nfllm").rglob("*.py"):
        for example in re.findall(r"^ *Example:\n(.*)\n", file.read_text(), re.MULTILINE):
            assert example.lstrip().startswith(">>> "), f"{file.relative_to(ROOT)}: {example}"


GUIDES = [page for page in sorted(PAGES.rglob("*.md")) if ">>> " in page.read_text()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_examples_in_guides_give_what_they_show(
    guide: Path, folder_with_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_runs)
    # The fence that ends a block is no output.
    text = re.sub(r"^```.*$", "", guide.read_text(), flags=re.MULTILINE)
    parser = doctest.DocTestParser()
    assert not run_examples([parser.get_doctest(text, {}, guide.stem, str(guide), 0)]).failed


@pytest.mark.parametrize(
    ("want", "got", "same"),
    [
        ("Array([0.582, 1.], dtype=float32)", "Array([0.58200003, 1. ], dtype=float32)", True),
        ("0.582", "0.5831", False),
        ("(1, 0.5)", "(2, 0.5)", False),
        ("0.0004", "3.6378836e-04", True),
        ("3.64e-04", "3.7e-04", False),
        ("[0.5]", "[0.5, 0.5]", False),
    ],
)
def test_numbers_of_examples_are_compared_as_they_are_written(
    want: str, got: str, same: bool
) -> None:
    assert _Rounded().check_output(want, got, 0) == same


def _functions_of_arrays() -> dict[str, Callable[..., Any]]:
    functions = {name: getattr(nfllm.analysis, name) for name in nfllm.analysis.__all__}
    return {
        name: function
        for name, function in functions.items()
        if inspect.isfunction(inspect.unwrap(function))
        and _array_parameters(function)
        and name not in ("alerts", "array_namespace")  # which return no array
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
TYPE = re.compile(r"\bfloat32\b|\bintegers\b|\bbooleans\b")
UNIT = re.compile(r"\bnats\b|\bshares?\b|\bunits?\b|\bnumber of\b|\bbetween\b")


@pytest.mark.parametrize("name", _functions_of_arrays())
def test_docstrings_state_the_shapes_and_units_of_arrays(name: str) -> None:
    function = _functions_of_arrays()[name]
    doc = inspect.getdoc(function) or ""
    arguments, returns = _section(doc, "Args"), _section(doc, "Returns")
    key_of_random_numbers = {"key"}
    for parameter in set(_array_parameters(function)) - key_of_random_numbers:
        assert SHAPE.search(_entry(arguments, parameter)), f"{parameter}: which shape?"
    for what, pattern in {"shape": SHAPE, "type": TYPE, "unit": UNIT}.items():
        assert pattern.search(returns), f"{name} returns: which {what}?"
    assert _section(doc, "Example"), f"{name} has no example"


def test_the_sections_of_a_docstring_are_found() -> None:
    doc = "Does.\n\nArgs:\n  x: `[T]` a,\n    b.\n  y: c.\n\nReturns:\n  `[T]` float32."
    assert _entry(_section(doc, "Args"), "x") == "`[T]` a,\n    b.\n"
    assert _entry(_section(doc, "Args"), "z") == ""
    assert _section(doc, "Returns") == "  `[T]` float32.\n"
    assert _section(doc, "Raises") == ""


def _listed(page: Path) -> list[str]:
    """Names that have a page of the reference, or an entry on one."""
    return re.findall(r"^(?:   |\.\. py:data:: )([A-Za-z]\w*)$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "module",
    [
        "nfllm",
        "nfllm.analysis",
        "nfllm.convert",
        "nfllm.measure.foreign",
        "nfllm.private_cost",
        "nfllm.report",
    ],
)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    names = set(importlib.import_module(module).__all__)
    submodules = {name for name in names if inspect.ismodule(getattr(nfllm, name, None))}
    constants = {name for name in names if name.isupper()}
    found = {name for page in PAGES.rglob("*.md") for name in _listed(page)}
    assert names - submodules - constants <= found


def test_pages_list_no_name_twice() -> None:
    for page in PAGES.rglob("*.md"):
        assert len(_listed(page)) == len(set(_listed(page))), page


def test_files_that_guides_name_are_there() -> None:
    named = {
        (page.name, name)
        for page in PAGES.rglob("*.md")
        for name in re.findall(
            r"`((?:nfllm|tests|configs|benchmarks)/[\w/]+\.py)`", page.read_text()
        )
    }
    assert named
    assert not {(page, name) for page, name in named if not (ROOT / name).exists()}
