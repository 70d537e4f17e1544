"""Paths as people write them, and files whose owner has no name."""

import contextlib
import dataclasses
import os
import pwd

import pytest
from etils import epath
from tiny import make_corpus, tiny_config

import nfllm
from nfllm import data
from nfllm.config import ConfigError
from nfllm.config.paths import local_path, status, user_path
from nfllm.data import tfds_reader
from nfllm.data.corpora import default_data_dir
from nfllm.report import write_report
from nfllm.rundir import METRICS_FILE, RunError, read_record
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer import program
from nfllm.trainer.checkpoints import restore_params
from nfllm.trainer.loop import fit
from nfllm.trainer.record import check_writable


@pytest.fixture
def no_home(monkeypatch):
    """A container that was started with a user number that it does not know."""

    def missing(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "--workdir") == epath.Path(tmp_path / "runs")
    assert user_path("./~/runs", "--workdir") == epath.Path("./~/runs")
    assert local_path("~", "SRC") == tmp_path


def test_a_nul_character_is_named():
    with pytest.raises(ConfigError, match=r"data\.data_dir='a\\x00b' has a NUL character"):
        user_path("a\0b", "data.data_dir")


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_refused(path):
    with pytest.raises(ConfigError, match="--workdir is empty"):
        user_path(path, "--workdir")


_WRITERS = {
    "--workdir": lambda config, _, path: fit(config, path),
    "--out": lambda _, run, path: write_report([run], path),
    "data.data_dir": lambda config, _, path: data.load(
        dataclasses.replace(config.data, data_dir=str(path)), config.model.context_length
    ),
}


@pytest.mark.parametrize("name", _WRITERS)
def test_a_directory_that_cannot_be_written_is_named_before_any_work(monkeypatch, tmp_path, name):
    def too_late(*_, **__):
        raise AssertionError("too late")

    config, run = tiny_config(make_corpus(tmp_path / "corpus"), tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    (run / METRICS_FILE).touch()
    (tmp_path / "file").touch()
    for work in ("trainer.loop.Program", "report.write.build_sections", "data.prepare.prepare"):
        monkeypatch.setattr(f"nfllm.{work}", too_late)
    with pytest.raises(ConfigError, match=rf"{name}=.*file/x cannot be written \(Not a directory"):
        _WRITERS[name](config, run, tmp_path / "file" / "x")


def test_a_file_in_place_of_a_directory_is_named_before_training(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ConfigError, match=r"--workdir=.*checkpoints cannot be written"):
        check_writable(epath.Path(tmp_path))
    with pytest.raises(ConfigError, match=r"compilation_cache=.*checkpoints cannot be written"):
        program._use_compilation_cache(str(tmp_path / "checkpoints"))


def _report(path):
    return write_report([path], path)


@pytest.mark.parametrize(
    "read", [read_record, nfllm.load_run, restore_params, read_metrics, _report]
)
def test_every_reader_of_a_run_takes_paths_so(monkeypatch, tmp_path, read):
    """None makes a directory of the name ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="is empty"):
        read("")
    named = contextlib.nullcontext()
    if read is not read_metrics:  # to which a missing file is an empty one
        named = pytest.raises(RunError, match=f"{tmp_path}/home/run")
    with named:
        read("~/run")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/run", r"run needs a missing package: pip install -e '.\[gcs\]'"),
        ("foo://bucket/run", "foo://bucket/run: unknown kind of storage"),
    ],
)
def test_storage_that_cannot_be_reached_is_named(monkeypatch, path, message):
    def fs(self, path):
        if path.startswith("foo"):
            raise KeyError("foo://")
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(type(epath.backend.fsspec_backend), "fs", fs)
    with pytest.raises(ConfigError, match=message):
        user_path(path, "--workdir")
    with pytest.raises(ConfigError, match=r"DST=.* must be a local directory"):
        local_path(path, "DST")


@pytest.mark.usefixtures("no_home")
def test_without_a_home_the_key_to_set_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.data_dir=None means a folder in the home directory"
    ):
        default_data_dir()
    with pytest.raises(
        ConfigError, match="--workdir=~/x: the home directory is not known; set HOME"
    ):
        user_path("~/x", "--workdir")
    program._use_compilation_cache(None)  # nowhere to keep programs is no error


@pytest.mark.slow
@pytest.mark.usefixtures("no_home")
def test_a_run_whose_paths_hold_glob_characters_and_whose_owner_has_no_name(tmp_path):
    """It trains, resumes, and loads; and its prepared data are found again, by TFDS as well."""
    folder = tmp_path / "runs [exp1] *?"
    folder.mkdir()
    corpus = make_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, folder / "data", training__steps=2)
    fit(config, folder / "run")
    longer = tiny_config(corpus, folder / "data", training__steps=3)
    assert fit(longer, folder / "run").step == 3
    events = read_metrics(folder / "run").rows["event"]
    assert [row["event"] for row in events] == ["started", "finished", "resumed", "finished"]
    assert nfllm.load_run(folder / "run").step == 3
    (info,) = tfds_reader._infos(epath.Path(folder / "data"), 3)
    name = os.path.relpath(info.parent.parent, folder / "data")
    assert tfds_reader.find_prepared(epath.Path(folder / "data"), name) == info.parent


def test_size_and_times_need_no_owner(tmp_path, no_home):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert status(epath.Path(file)) == (5, file.stat().st_mtime, file.stat().st_ctime)
