"""The HTML page: one file that loads nothing, readable without scripts."""

from __future__ import annotations

import html
import importlib.resources
import re
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from nfllm.report import render
from nfllm.report.charts import Chart
from nfllm.report.heatmap import color_rules
from nfllm.report.tables import Table, format_cell

# Scripts and styles are inline. The policy blocks any request, even if a run's name holds markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Pictures(NamedTuple):
    """A figure, saved as `name`.png and `name`.pdf; the page shows its smaller `panels` instead.

    Names are unique in a page; most are words joined by underscores. If there are `charts`, one for
    each panel, the page's script draws them in place of the panels; `table` has their numbers,
    saved as `name`.csv.
    """

    name: str
    caption: str
    whole: Figure
    panels: Sequence[Figure]
    charts: Sequence[Chart] = ()
    table: Table | None = None


class Rows(NamedTuple):
    """A table, saved as `name`.csv; `shown` is False if the page only links to it."""

    name: str
    caption: str
    table: Table
    shown: bool = True


class Markup(NamedTuple):
    """HTML, and the `Pictures` and `Rows` that it links to."""

    content: str
    downloads: Sequence[Pictures | Rows] = ()


Block = Pictures | Rows | Markup


class Section(NamedTuple):
    """A heading, a sentence or two on what the section shows, and its blocks."""

    title: str
    lead: str
    blocks: Sequence[Block]


def render_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document. `title` and all `lead`s are plain text and are escaped."""
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{_resource("page.css")}{color_rules()}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p>{html.escape(lead)}</p>
</header>
<main>
{body}
</main>
<script>
{_resource("page.js")}{_resource("chart.js")}</script>
</body>
</html>
"""


def table_html(table: Table) -> str:
    """A table whose first column holds the row headings; numbers are aligned to the right."""
    numeric = [bool(column.form) for column in table.columns]
    head = "".join(
        f"<th scope=col{_right(number)}>{_breakable(column.title)}</th>"
        for column, number in zip(table.columns, numeric, strict=True)
    )
    lines = []
    for row in table.rows:
        cells = [format_cell(v, c.form) for v, c in zip(row, table.columns, strict=True)]
        rest = "".join(
            f"<td{_right(number)}>{html.escape(cell)}</td>"
            for cell, number in zip(cells[1:], numeric[1:], strict=True)
        )
        lines.append(f"<tr><th scope=row>{html.escape(cells[0])}</th>{rest}</tr>")
    body = "\n".join(lines)
    return (
        f"<div class=wide tabindex=0><table class=numbers>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _breakable(title: str) -> str:
    """A column's title, which may be a long key, with places where its line may break."""
    return re.sub(r"(?<=[._])(?=\w)", "<wbr>", html.escape(title))


def details_html(summary: str, content: str) -> str:
    """`content`, which is HTML, collapsed under the plain text `summary`."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def list_html(items: Sequence[str]) -> str:
    """Plain texts as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    lead = f"<p>{html.escape(section.lead)}</p>\n" if section.lead else ""
    return (
        f"<section>\n<h2>{html.escape(section.title)}</h2>\n{lead}"
        f"<div class=blocks>\n{blocks}\n</div>\n</section>"
    )


def _block(block: Block) -> str:
    if isinstance(block, Markup):
        links = "".join(_links(item) for item in block.downloads)
        caption = f"<figcaption>{links}</figcaption>" if links else ""
        return f"<figure class=full>{block.content}{caption}</figure>"
    caption = f"{html.escape(block.caption)} {_links(block)}"
    if isinstance(block, Rows):
        shown = table_html(block.table) if block.shown else ""
        return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
    panels = "".join(_panel(block, index) for index in range(len(block.panels)))
    return f"<figure><div class=panels>{panels}</div><figcaption>{caption}</figcaption></figure>"


def _panel(pictures: Pictures, index: int) -> str:
    """One panel as SVG, and its chart's numbers for the page's script."""
    svg = render.svg(pictures.panels[index], f"{_id(pictures.name)}-{index}")
    label = html.escape(pictures.name.replace("_", " "))
    image = f'<div role=img aria-label="{label}">{svg}</div>'
    if not pictures.charts:
        return f"<div class=panel>{image}</div>"
    numbers = f"<script type=application/json>{pictures.charts[index].json()}</script>"
    return f'<div class="panel chart">{image}{numbers}</div>'


def _links(item: Pictures | Rows) -> str:
    name = urllib.parse.quote(item.name)
    csv = "" if item.table is None else f'<a href="tables/{name}.csv">CSV</a>'
    if isinstance(item, Rows):
        return csv
    figure = f"figures/{name}"
    return f'<a href="{figure}.png">PNG</a> <a href="{figure}.pdf">PDF</a> {csv}'.rstrip()


def _id(name: str) -> str:
    """A name as part of an element's id, which other parts of the SVG refer to by url(#id)."""
    return re.sub(r"[^\w-]", lambda found: f"-{ord(found[0]):x}-", name)


def _right(number: bool) -> str:
    return " class=n" if number else ""


def _resource(name: str) -> str:
    return importlib.resources.files("nfllm.report").joinpath(name).read_text("utf-8")
