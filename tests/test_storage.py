"""A run whose directory and data lie in object storage.

Google Cloud Storage is played by `object_storage`: one set of objects behind `etils.epath` and, for
tensorstore's own client, which Orbax writes arrays with, behind the HTTP API. Whether the bucket
has folders, which Orbax asks another library, is answered as for an ordinary bucket.
"""

import dataclasses

import jax
import numpy as np
import object_storage
import pytest
from orbax.checkpoint._src.path import gcs_utils
from tiny import make_corpus, tiny_config

import nfllm
from nfllm.report import write_report
from nfllm.trainer.loop import fit

pytestmark = pytest.mark.slow

RUN = "gs://bucket/runs/one"


@pytest.fixture
def bucket(monkeypatch):
    files = object_storage.in_memory(monkeypatch)
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: object())
    with object_storage.served(files, monkeypatch):
        yield files


def _until(config, steps):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, steps=steps))


def test_a_run_trains_resumes_and_is_read_in_object_storage(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    corpus = make_corpus(tmp_path / "corpus")
    remote = tiny_config(corpus, "gs://bucket/data", checkpoint__every=2, telemetry__every=4)
    local = dataclasses.replace(remote, data=dataclasses.replace(remote.data, data_dir="data"))
    fit(_until(remote, 4), RUN)
    fit(_until(remote, 6), RUN)
    fit(_until(local, 4), "run")
    fit(_until(local, 6), "run")
    found, expected = nfllm.load_run(RUN), nfllm.load_run("run")
    assert found.step == expected.step == 6
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint
    for kind, field in [("train", "loss_nats"), ("telemetry", "entropy_nats")]:
        for x, y in zip(*(r.metrics.series(kind, field) for r in (found, expected)), strict=True):
            np.testing.assert_array_equal(x, y)
    assert [row["event"] for row in found.metrics.rows["event"]] == [
        "started", "finished", "resumed", "finished",
    ]  # fmt: skip
    page = write_report([RUN], f"{RUN}/report")
    assert str(page) == f"{RUN}/report/index.html"
    assert page.read_text().startswith("<!DOCTYPE html>")
    # `checkpoint.keep` newest ones stay, and nothing has strayed to the local disk.
    names = {name.split("/")[5] for name in bucket.store if "/checkpoints/step_" in name}
    assert names == {"step_4", "step_6"}
    assert not (tmp_path / "gs:").exists()
