"""A matplotlib Figure as bytes of PNG and PDF, and as SVG to embed in an HTML page."""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nfllm.report.style import INK

_PNG_DPI = 300
_SAVING: Any = {"svg.fonttype": "none", "svg.hashsalt": "nfllm", "pdf.fonttype": 42}


def png(figure: Figure) -> bytes:
    """The figure on white, at 300 dots per inch."""
    return _save(figure, "png", dpi=_PNG_DPI, facecolor="white")


def pdf(figure: Figure) -> bytes:
    """The figure as vectors with its fonts embedded; the same figure gives the same bytes."""
    return _save(figure, "pdf", metadata={"CreationDate": None}, facecolor="white")


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an `<svg>` element for the inside of a page.

    Text stays text, in the page's font. The text colour becomes `currentColor`, which follows a
    dark colour scheme; the background is transparent. Every id starts with `prefix`, which must
    differ between the figures of one page.
    """
    content = _save(figure, "svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(content)
    referenced = {
        value.partition("#")[2].rstrip(")")
        for element in root.iter()
        for value in element.attrib.values()
        if value.startswith(("#", "url(#"))
    }
    for element in root.findall("{*}metadata") + root.findall("{*}defs/{*}style/.."):
        root.remove(element)  # the page's own style sheet says how lines join
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _inline(name, value, prefix)
            for name, value in element.attrib.items()
            if name != "id" or value in referenced
        }
    width, height = root.attrib.pop("width"), root.attrib.pop("height")
    root.set("style", f"width:{width};aspect-ratio:{width[:-2]}/{height[:-2]}")
    return ET.tostring(root, encoding="unicode")


def _inline(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if value.startswith("url(#"):
        return f"url(#{prefix}-{value[5:]}"
    if name == "style":
        rules = value.replace(INK, "currentColor").split("; ")
        return ";".join(rule for rule in rules if not rule.startswith("font-family:"))
    return value


def _save(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SAVING), warnings.catch_warnings():
        # A run's name may have letters that the font lacks; a box is drawn in their place.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        _settle(figure)
        figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Fixes the layout for all formats, in the two passes that constrained layout needs."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        engine.execute(figure)
        figure.set_layout_engine("none")
