"""The notebook runs from top to bottom, as a Colab user runs it."""

from pathlib import Path

import nbclient
import nbformat
import pytest
from tiny import make_corpus, tiny_flags

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "analysis_colab.ipynb"


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
    cell = next(cell for cell in notebook.cells if cell.source.startswith("steps = "))
    cell.source = cell.source.replace("options = []", f"options = {options!r}")
    cell.source = cell.source.replace('folder = Path("runs")', f"folder = Path({str(tmp_path)!r})")
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    shown = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 2
