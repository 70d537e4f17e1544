"""A run that nfllm 0.1.0 wrote (commit 61c4086): it loads, goes on and is reported."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import nfllm
from nfllm.config import CheckpointConfig
from nfllm.report import write_report
from nfllm.rundir import read_record
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.placement import Placement
from nfllm.training.build import build
from nfllm.training.guard import Guard

RECORDED = Path(__file__).parent / "recordings" / "run_0_1_0"


@pytest.fixture
def path(tmp_path):
    """The recorded run where it may be written to."""
    return shutil.copytree(RECORDED, tmp_path / "run_0_1_0")


def test_it_loads_with_what_keys_meant_then(path):
    run = nfllm.load_run(path)
    assert (run.step, run.model.vocab_size) == (4, 257)
    assert run.config.data.document_separator is None
    tokens_BT = np.arange(12)[None]
    assert np.isfinite(nfllm.capture(run.model, run.params, tokens_BT).logits).all()
    assert [row["step"] for row in run.metrics.rows["train"]] == [1, 2, 3, 4]


def test_training_goes_on_from_its_checkpoint(path):
    record = read_record(path)
    built = build(record.config, record.vocab_size)
    placement = Placement(record.config, jax.devices()[:1])
    with Checkpoints(path, CheckpointConfig()) as checkpoints:
        saved = checkpoints.restore(placement.abstract(built.init), record.data_fingerprint)
    state = placement.from_checkpoint(saved)
    assert (int(state.step), int(state.guard)) == (4, Guard.WATCHING)
    jax.tree.map(np.testing.assert_array_equal, state.params, nfllm.load_run(path).params)


@pytest.mark.slow
def test_it_is_reported(path, tmp_path):
    page = Path(write_report([path], tmp_path / "report"))
    assert "run_0_1_0" in page.read_text(encoding="utf-8")
