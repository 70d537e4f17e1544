"""The notebook runs from top to bottom, as a Colab user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from tiny import make_corpus, tiny_flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "analysis_colab.ipynb"
IN_COLAB = """
import builtins, shutil, subprocess, sys, types
from pathlib import Path

def run(command, check):
    if command[0] == "git":
        for name in ("nfllm", "configs"):
            shutil.copytree(Path(command[2]) / name, Path(command[3]) / name)
        shutil.copy(Path(command[2]) / "train.py", command[3])
    else:
        assert command[1:4] == ["-m", "pip", "install"] and Path(command[-1]).is_dir()

sys.modules["google.colab"] = types.ModuleType("google.colab")
builtins.input = lambda _: sys.argv[1]
subprocess.run = run
exec(sys.argv[2])
del sys.modules["google.colab"]  # for JAX, which would look into it
import nfllm.analysis
print(nfllm.__file__)
"""


# Of the kernel's own machinery.
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs_top_to_bottom(tmp_path, compilation_cache):
    corpus = make_corpus(tmp_path / "corpus")
    flags = tiny_flags(
        corpus,
        tmp_path / "data",
        training__steps=30,
        training__compilation_cache=str(compilation_cache),
        telemetry__every=10,
        parallel__cpu_devices=2,  # the notebook has one
    )
    options = [f"--config.{key}={value}" for key, value in flags.items()]
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "\nsteps = " in cell.source)
    cell.source = cell.source.replace("options = []", f"options = {options!r}")
    cell.source = cell.source.replace('folder = Path("runs")', f"folder = Path({str(tmp_path)!r})")
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 4  # linear MLPs, entropies, importance, attention
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(r"\rrelu: step 30/30  loss", printed)  # while it trains
    (best,) = re.findall(r"head (\d\.\d) matters most: without it the loss rises by", printed)
    number = r"-?\d\.\d{4}"
    without = rf"head {best}: when its output is 0, loss rises by {number} ± {number}"
    assert re.search(without, printed)
    assert (tmp_path / "notebook_report" / "index.html").exists()


def test_in_a_colab_the_clone_is_imported_by_the_kernel_that_made_it(tmp_path):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    cell = next(cell.source for cell in cells if "google.colab" in cell.source)
    command = [sys.executable, "-c", IN_COLAB, str(ROOT), cell]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    imported = Path(done.stdout.strip())
    assert imported.is_relative_to(tmp_path)
