"""`python -m nfllm.experiment` as a user runs it, killed and gone on with."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from page_checks import check
from trainer import ROOT, TIMEOUT_SECONDS, wait_until

from nfllm.rundir.metrics import read_metrics

pytestmark = pytest.mark.slow

SIX = ["sm+g", "sm+r", "sm+ln+g", "sm+ln+r", "sm+ln", "sm"]

# Two of the six, one that cannot be trained, and one that diverges.
GRID = """
import dataclasses
from configs.paper import get_experiment as paper
from nfllm.experiment import Variant

SCALES = ("some",)

def get_experiment(scale):
    whole = paper("minute")
    group = whole.groups["main"]
    variants = {
        "too_big": Variant({"training.batch_size": 10**8}),
        "sm+g": group.variants["sm+g"],
        "wild": Variant({"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}),
        "sm+r": group.variants["sm+r"],
        "again": group.variants["sm+g"],
    }
    main = dataclasses.replace(group, variants=variants)
    return dataclasses.replace(whole, groups={"main": main})
"""


class Experimenter:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "grids").mkdir()
        self.grid = folder / "grids" / "some.py"
        self.grid.write_text(GRID)

    def start(self, config: Path, scale: str, out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "nfllm.experiment", str(config), "--scale", scale]
        command += [*more, "--out", str(out), f"--config.data.data_dir={self.folder / 'data'}"]
        command += [f"--config.training.compilation_cache={self.folder / 'compiled'}"]
        with open(self.folder / "printed.txt", "w") as printed:
            return subprocess.Popen(
                command,
                cwd=self.folder,  # any folder will do
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def run(self, config: Path, scale: str, out: Path, *more: str) -> tuple[int, str]:
        process = self.start(config, scale, out, *more)
        try:
            return process.wait(TIMEOUT_SECONDS), (self.folder / "printed.txt").read_text()
        finally:
            process.kill()  # of a run that took too long; its workers end with it


@pytest.fixture(scope="module")
def experimenter(tmp_path_factory):
    return Experimenter(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def minute(experimenter):
    out = experimenter.folder / "minute"
    code, printed = experimenter.run(ROOT / "configs" / "paper.py", "minute", out)
    assert code == 0, printed
    return out


def rows(out: Path, table: str) -> dict[str, dict[str, str]]:
    with open(out / "report" / "tables" / f"{table}.csv", newline="") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def test_minute_runs_all_six_rows_and_reports_them(minute):
    table = rows(minute, "perplexity_main")
    assert list(table) == SIX
    for variant, row in table.items():
        logged = read_metrics(minute / "main" / variant / "seed0").rows["eval"][-1]
        assert float(row["eval loss (nats)"]) == logged["eval_loss_nats"]
        assert logged["step"] == 30
    causes = rows(minute, "cause_main")
    assert abs(float(causes["sm"]["all (nats)"])) < 1e-5  # an identity is its own best fit
    assert float(causes["sm+r"]["all (nats)"]) > 1e-3
    page = (minute / "report" / "index.html").read_text()
    check(page)
    for heading in ("Verdicts", "Perplexity", "Overloaded heads", "How linear the MLPs are"):
        assert f"<h2>{heading}</h2>" in page
    results = (minute / "RESULTS.md").read_text()
    assert results.startswith("# Results of configs/paper.py, scale minute\n")
    assert "6 of 6 runs have ended" in results
    assert results.count("too short for verdicts") == page.count("too short for verdicts") == 1
    assert f"| sm+r | 1 | {float(table['sm+r']['eval loss (nats)']):.4f} |" in results


def test_killed_and_gone_on_with_it_ends_in_the_same_table(experimenter, minute):
    out = experimenter.folder / "some"
    process = experimenter.start(experimenter.grid, "some", out)
    half_way = out / "main" / "sm+g" / "seed0"
    wait_until(lambda: (half_way / "metrics.jsonl").exists() and steps(half_way) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The run saves and ends when it finds itself alone, so that the next start may have it.
    code, printed = experimenter.run(experimenter.grid, "some", out)
    assert code == 1, printed
    found, whole = rows(out, "perplexity_main"), rows(minute, "perplexity_main")
    change = "against sm+ln+g (%)"
    for variant in ("sm+g", "sm+r"):
        assert found[variant] == {**whole[variant], change: ""}
    problems = rows(out, "problems")
    assert problems["main/too_big/seed0"]["status"] == "failed"
    assert "training.batch_size=100000000" in problems["main/too_big/seed0"]["why"]
    assert problems["main/wild/seed0"]["status"] == "diverged"
    assert "at step 3: first in residual of layer 0: " in problems["main/wild/seed0"]["why"]
    assert problems["main/again/seed0"]["why"].startswith("has the same config as main/sm+g/seed0")
    assert found["again"]["eval loss (nats)"] == found["sm+g"]["eval loss (nats)"]
    for name in ("too_big", "wild", "again"):
        assert f"| main/{name}/seed0 |" in (out / "RESULTS.md").read_text()


def test_a_part_of_the_grid_is_trained_and_the_page_is_that_of_all(experimenter, minute):
    out = experimenter.folder / "part"
    code, printed = experimenter.run(experimenter.grid, "some", out, "--only", "main/ag*")
    assert code == 0, printed
    assert [path.name for path in (out / "main").iterdir()] == ["sm+g"]
    assert "1 runs\n" in printed
    assert "--scale some '--only=main/ag*' --config." in (out / "RESULTS.md").read_text()
    found, whole = rows(out, "perplexity_main"), rows(minute, "perplexity_main")
    assert found["again"]["eval loss (nats)"] == whole["sm+g"]["eval loss (nats)"]
    assert {name: row["status"] for name, row in rows(out, "problems").items()} == {
        **{f"main/{name}/seed0": "not run" for name in ("too_big", "wild", "sm+r")},
        "main/again/seed0": "duplicate",
    }


def steps(run: Path) -> int:
    found = read_metrics(run).rows["train"]
    return found[-1]["step"] if found else 0
