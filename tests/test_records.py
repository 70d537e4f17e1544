"""Pages of docs/results whose runs are kept beside them say what those runs give."""

import shutil
import tarfile
from pathlib import Path

import pytest
from trainer import ROOT

from nfllm.experiment.grid import expand, load_experiment
from nfllm.experiment.outcome import read_outcome, refuse_other_data
from nfllm.experiment.provenance import PROVENANCE_FILE
from nfllm.experiment.write import write_results

pytestmark = pytest.mark.slow

PAGES = ROOT / "docs" / "results"


@pytest.mark.parametrize("page", ["factors", "width_and_start"])
def test_a_page_is_what_its_records_give(page: str, tmp_path: Path) -> None:
    records = PAGES / "records" / page
    archives = [*records.glob("*.tar.xz")]
    assert archives
    for archive in archives:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
    shutil.copy(records / PROVENANCE_FILE, tmp_path)
    experiment = load_experiment(ROOT / "configs" / f"{page}.py", "cpu")
    entries = expand(experiment)
    outcomes = {entry.name: read_outcome(tmp_path, entry) for entry in entries}
    assert {outcome.status for outcome in outcomes.values()} <= {"finished", "diverged", "not run"}
    outcomes = refuse_other_data(entries, outcomes, tmp_path)
    _, results = write_results(experiment, entries, outcomes, tmp_path)
    assert results.read_text("utf-8") == (PAGES / f"{page}.md").read_text("utf-8")
