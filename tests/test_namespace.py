"""What `nfllm.` offers, to a person at a prompt, to an editor and to a type checker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nfllm

ROOT = Path(__file__).parents[1]
TYPED = """
import nfllm
run = nfllm.load_run("runs/default")
reveal_type(run)
reveal_type(run.model)
reveal_type(nfllm.evaluate(run, "text"))
reveal_type(nfllm.generate(run, "def "))
reveal_type(nfllm.__version__)
nfllm.lod_run
"""


def test_a_prompt_offers_what_a_user_calls_and_nothing_else():
    code = "import nfllm; nfllm.load_run; nfllm.report; print(*dir(nfllm))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    offered = [name for name in done.stdout.split() if not name.startswith("__")]
    assert offered == sorted(nfllm.__all__)
    assert {"load_run", "capture", "analyze", "analysis", "report"} <= set(offered)
    for name in nfllm.__all__:
        assert getattr(nfllm, name).__name__.rpartition(".")[2] == name


def test_types_are_those_of_what_is_imported_on_first_use():
    tree = ast.parse(Path(nfllm.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If) and not node.orelse][:1]
    homes = {
        alias.name: f"{node.module}.{alias.name}"
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    members = {name: f"{home}.{name}" for name, home in nfllm._MEMBERS.items()}
    assert homes == {**nfllm._MODULES, **members}


@pytest.mark.slow
def test_a_type_checker_knows_what_they_return(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [*command, tmp_path / "typed.py"], cwd=ROOT, capture_output=True, text=True
    )
    revealed = [line.partition('type is "')[2].rstrip('"') for line in done.stdout.splitlines()]
    assert revealed[:5] == [
        "nfllm.run.Run",
        "nfllm.model.decoder.Decoder",
        "nfllm.measure.evaluation.Evaluation",
        "str",
        "str",
    ]
    assert 'Module has no attribute "lod_run"; maybe "load_run"?' in done.stdout
