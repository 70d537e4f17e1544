"""Writes a report: the page, and the files that it links to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from etils import epath

from nfllm.config.paths import make_writable
from nfllm.report import render
from nfllm.report.cost_sections import cost_sections
from nfllm.report.page import Block, Markup, Pictures, Rows, Section, render_page
from nfllm.report.reference import Reference
from nfllm.report.runs import ReportedRun, read_runs
from nfllm.report.sections import build_sections
from nfllm.rundir import METRICS_FILE, RECORD_FILE, RunError, run_directory


def write(
    runs: Sequence[epath.PathLike],
    out: epath.PathLike,
    reference: Reference | None = None,
    *,
    importance: bool = False,
    steps: bool = False,
    private_cost: bool = False,
) -> epath.Path:
    """See `nfllm.report.write_report`."""
    read = read_runs(runs)
    _check_are_runs(runs)
    make_writable(run_directory(out), "--out")
    requested = list(_checkpoint_sections(runs, read, importance, steps))
    requested += cost_sections(read) if private_cost else ()
    sections = build_sections(read, reference, requested)
    return write_page(_title(read), _lead(read), sections, out)


def write_page(
    title: str, lead: str, sections: Sequence[Section], out: epath.PathLike
) -> epath.Path:
    """Writes `index.html` with these sections, and the files that it links to, into `out`."""
    directory = run_directory(out)
    for folder in ("figures", "tables"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    items = list(_downloads([block for section in sections for block in section.blocks]))
    files = [("table", item.name) for item in items if item.table is not None]
    files += [("figure", item.name) for item in items if isinstance(item, Pictures)]
    if repeated := [file for file, times in Counter(files).items() if times > 1]:
        raise ValueError(f"two parts of a page save the {' '.join(repeated[0])}; rename one")
    for item in items:
        if item.table is not None:
            (directory / "tables" / f"{item.name}.csv").write_bytes(_utf8(item.table.csv()))
        if isinstance(item, Pictures):
            (directory / "figures" / f"{item.name}.png").write_bytes(render.png(item.whole))
            (directory / "figures" / f"{item.name}.pdf").write_bytes(render.pdf(item.whole))
    index = directory / "index.html"
    index.write_bytes(_utf8(render_page(title, lead, sections)))
    return index


def _check_are_runs(paths: Sequence[epath.PathLike]) -> None:
    """Raises RunError if no directory has one of the files that make it a run."""
    directories = [run_directory(path) for path in paths]
    files = [directory / name for directory in directories for name in (RECORD_FILE, METRICS_FILE)]
    if not any(file.exists() for file in files):
        raise RunError(
            f"{directories[0]} has neither {RECORD_FILE} nor {METRICS_FILE}, so it is no run; name "
            "the --workdir of a training"
        )


def _checkpoint_sections(
    paths: Sequence[epath.PathLike], runs: Sequence[ReportedRun], importance: bool, steps: bool
) -> Iterator[Section]:
    if not importance and not steps:
        return
    from nfllm.report.checkpoint_sections import importance_sections, step_sections

    directories, labels = [epath.Path(path) for path in paths], [run.label for run in runs]
    if importance:
        yield from importance_sections(directories, labels)
    if steps:
        yield from step_sections(directories, labels)


def _utf8(text: str) -> bytes:
    """UTF-8, with escapes for surrogates, which a path of undecodable bytes has."""
    return text.encode("utf-8", "backslashreplace")


def _downloads(blocks: Sequence[Block]) -> Iterator[Pictures | Rows]:
    for block in blocks:
        if isinstance(block, Markup):
            yield from block.downloads
        else:
            yield block


def _title(runs: Sequence[ReportedRun]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs compared"


def _lead(runs: Sequence[ReportedRun]) -> str:
    """The shapes of the models, each once."""
    shapes = dict.fromkeys(
        f"{run.model.architecture}, {run.model.num_layers} layers, {run.model.num_heads} heads, "
        f"width {run.model.embed_dim}, context {run.model.context_length}"
        for run in runs
        if run.model is not None
    )
    return "; ".join(shapes)
