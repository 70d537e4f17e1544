"""The record of a run directory: written whole, read back, and refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthetic_runs import make_record

from nfllm.rundir import FORMAT_VERSION, RunError, RunRecord, read_record, write_record


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return make_record({}, undecayed_parameters=("final_normalization.scale",))


def edit_record(run: Path, change: dict) -> None:
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(values | change))


def test_record_reads_back_what_was_written(tmp_path, record):
    write_record(tmp_path / "new" / "run", record)
    assert read_record(tmp_path / "new" / "run") == record
    assert [p.name for p in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_record_has_the_keys_of_the_contract(tmp_path, record):
    write_record(tmp_path, record)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["format_version"] == 1
    assert values["nfllm_version"] == "0.1.0"
    assert values["config"]["model"]["normalization"] == "none"
    assert values["vocab_size"] == 4096
    assert values["num_parameters"] == 1_327_104
    assert values["data_fingerprint"] == "9f0c"
    assert values["undecayed_parameters"] == ["final_normalization.scale"]


def test_record_of_before_a_key_existed(tmp_path, record):
    write_record(tmp_path, record)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["config"]["training"]["loss_tile_rows"]
    edit_record(tmp_path, values)
    assert read_record(tmp_path) == record
    # A key that every run ever had is not made up.
    del values["config"]["training"]["batch_size"]
    edit_record(tmp_path, values)
    with pytest.raises(RunError, match="training lacks the key 'batch_size'"):
        read_record(tmp_path)


def test_record_is_replaced_whole(tmp_path, record):
    write_record(tmp_path, record)
    write_record(tmp_path, dataclasses.replace(record, vocab_size=512))
    assert read_record(tmp_path).vocab_size == 512


def test_failed_write_keeps_the_old_record(tmp_path, record, monkeypatch):
    write_record(tmp_path, record)

    def power_failure(_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", power_failure)
    with pytest.raises(OSError, match="no space"):
        write_record(tmp_path, dataclasses.replace(record, vocab_size=512))
    assert read_record(tmp_path) == record


def test_missing_directory_and_missing_record(tmp_path):
    with pytest.raises(RunError, match=r"nowhere does not exist"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no config\.json"):
        read_record(tmp_path)


def test_half_written_record(tmp_path, record):
    write_record(tmp_path, record)
    whole = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"config\.json is incomplete"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": FORMAT_VERSION + 1, "nfllm_version": "9.1.0"},
            r"format_version 2, written by nfllm 9\.1\.0; this nfllm reads up to 1",
        ),
        ({"format_version": None}, "has no format_version"),
        ({"colour": "red"}, "unknown key 'colour', written by nfllm 0.1.0"),
        ({"vocab_size": "4096"}, "vocab_size is of type str, expected int"),
        ({"config": {"model": {}}}, "is not a config of this nfllm: config lacks the key"),
    ],
)
def test_record_of_another_version(tmp_path, record, change, message):
    write_record(tmp_path, record)
    edit_record(tmp_path, change)
    with pytest.raises(RunError, match=message):
        read_record(tmp_path)


def test_config_key_of_another_version_is_named(tmp_path, record):
    write_record(tmp_path, record)
    config = record.config.to_dict()
    config["model"]["num_experts"] = 8
    edit_record(tmp_path, {"config": config, "nfllm_version": "0.7.0"})
    with pytest.raises(RunError, match=r"written by nfllm 0\.7\.0.*'num_experts' in model"):
        read_record(tmp_path)


def test_missing_key_is_named(tmp_path, record):
    write_record(tmp_path, record)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["data_fingerprint"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="lacks the key 'data_fingerprint'"):
        read_record(tmp_path)
