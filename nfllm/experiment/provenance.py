"""Where, when and with which versions an experiment was run: one entry for each start."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from nfllm.config.files import find_file
from nfllm.experiment.slots import Machine
from nfllm.rundir import write_whole
from nfllm.version import nfllm_version

GRID_FILE = "grid.py"
PROVENANCE_FILE = "provenance.json"

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """One start of an experiment.

    `grid` is the grid file as the command named it, and `grid_sha256` the first digits of its hash;
    the output directory has a copy of it. `commit` is None outside a git checkout.
    """

    command: str
    scale: str
    date: str
    device: str
    slots: int
    commit: str | None
    versions: dict[str, str]
    seconds: float
    grid: str = ""
    grid_sha256: str = ""

    @classmethod
    @contextlib.contextmanager
    def record(
        cls, out: Path, config: Path, scale: str, machine: Machine, overrides: Sequence[str]
    ) -> Iterator[None]:
        """Adds an entry to the file in `out` when the block ends, also when it raises."""
        began, date = time.monotonic(), time.strftime("%Y-%m-%d")
        grid, source = _as_named(config), find_file(config).read_bytes()
        (out / GRID_FILE).write_bytes(source)
        try:
            yield
        finally:
            new = cls(
                command=shlex.join(
                    ["python", "-m", "nfllm.experiment", grid, "--scale", scale, *overrides]
                ),
                scale=scale,
                date=date,
                device=machine.device,
                slots=len(machine.slots),
                commit=_commit(),
                versions={
                    "Python": platform.python_version(),
                    "nfllm": nfllm_version(),
                    **{name: importlib.metadata.version(name) for name in _PACKAGES},
                },
                seconds=round(time.monotonic() - began, 1),
                grid=grid,
                grid_sha256=hashlib.sha256(source).hexdigest()[:12],
            )
            starts = [*_starts(out), dataclasses.asdict(new)]
            text = json.dumps(starts, indent=1) + "\n"
            write_whole(epath.Path(out / PROVENANCE_FILE), text.encode())


def read_provenance(out: Path) -> list[Provenance]:
    """The entries in `out`, oldest first, without those that cannot be read."""
    found = []
    for start in _starts(out):
        with contextlib.suppress(TypeError):  # of another version
            found.append(Provenance(**start))
    return found


def _starts(out: Path) -> list[dict[str, Any]]:
    """The entries as they were written, of any version; none if the file cannot be read."""
    try:
        values = json.loads((out / PROVENANCE_FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return [x for x in values if isinstance(x, dict)] if isinstance(values, list) else []


def _as_named(path: Path) -> str:
    """A path below the current folder relative to it, else the last two parts of the path."""
    whole, here = path.resolve(), Path.cwd().resolve()
    if whole.is_relative_to(here):
        return whole.relative_to(here).as_posix()
    return path.as_posix() if not path.is_absolute() else "/".join(whole.parts[-2:])


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, marked "dirty" if files were changed."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None
