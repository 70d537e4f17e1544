"""How Sphinx builds the pages: `sphinx-build -W docs build/docs`. Nothing is fetched."""

import ast
import importlib.util
import inspect
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import nfllm  # noqa: E402

project = "nfllm"
author = "The nfllm authors"
copyright = author
version = release = nfllm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# `name` in a docstring links to what has that name, and is code where nothing has.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autosummary_generate = True
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True

html_theme = "furo"
html_title = f"nfllm {version}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
mathjax_path = "mathjax/tex-chtml.js"


def _copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """MathJax and its fonts come from a Python package: pages need no network to be read."""
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if error is not None or app.builder.format != "html" or found is None or found.origin is None:
        return
    source = Path(found.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
    shutil.copy(source / "tex-chtml.js", target)


def _as_written(function: Any) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str | None] | None:
    """Annotations as the source has them: `Arrays`, not the twelve types that it stands for."""
    function = _as_written(inspect.unwrap(obj)) if what in ("function", "method") else None
    if function is None:
        # Fields of a record are listed below it.
        return ("", None) if what == "class" and hasattr(obj, "_fields") else None
    arguments = function.args
    if what == "method" and arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    return f"({ast.unparse(arguments)})", ast.unparse(function.returns) if function.returns else ""


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Of a record's field without a docstring, no more than its name."""
    if len(lines) >= 1 and lines[0].startswith("Alias for field number"):
        lines.clear()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("build-finished", _copy_mathjax)
