"""Names, fields and terminals that are not UTF-8: text, an escape or a line, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_runs
from data_configs import data_config, words, write_jsonl
from etils import epath

import nfllm.data
from nfllm.config import ConfigError
from nfllm.report import write_report
from nfllm.rundir import RunError
from nfllm.trainer.record import check_writable

LATIN_1 = os.fsdecode(b"caf\xe9")
ENVIRONMENTS = {
    "utf8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin1": {"PYTHONIOENCODING": "latin-1"},
    "c_locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("dataset", ["text_files", "python_source"])
def test_a_corpus_whose_names_are_not_utf8(tmp_path, dataset):
    root = tmp_path / LATIN_1
    root.mkdir()
    for i in range(30):
        if dataset == "text_files":
            (root / f"{LATIN_1}{i}.txt").write_text(words(i))
        else:
            (root / f"{LATIN_1}{i}.py").write_text(f"'''{words(i)}'''")
    config = data_config(
        tmp_path / "data",
        dataset=dataset,
        sources=str(root),
        tokenizer="bytes",
        validation_split="field",
        validation_field="path",
        validation_fraction=0.3,
    )
    card = nfllm.data.load(config, 16).card
    assert card["documents"]["read"] == 30
    held_out = card["held_out"]["values"]
    assert all(name.startswith("caf\\udce9") for name in held_out)
    json.dumps(card, ensure_ascii=False).encode("latin-1", "surrogateescape")


def test_fields_that_are_not_utf8(tmp_path):
    records = [{"text": words(i), "l\ud800": i, "license": f"m\udc80{i % 3}"} for i in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    config = data_config(
        tmp_path / "data",
        dataset="text_files",
        sources=str(path),
        tokenizer="bytes",
        validation_split="field",
        validation_field="license",
        validation_fraction=0.3,
    )
    card = nfllm.data.load(config, 16).card
    assert json.dumps(card, ensure_ascii=False).encode()
    assert "m\\udc800" in card["licences"]["of_documents"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_preparing_prints_what_the_terminal_can_hold(tmp_path, environment):
    root = tmp_path / LATIN_1
    root.mkdir()
    for i in range(30):
        (root / f"ü{LATIN_1}{i}.txt").write_text(words(i))
    found = command(
        "nfllm.data",
        "--config.data.dataset=text_files",
        f"--config.data.sources={root}",
        "--config.data.tokenizer=bytes",
        "--config.data.validation_fraction=0.3",
        "--config.model.context_length=16",
        f"--config.data.data_dir={tmp_path / 'data'}",
        **ENVIRONMENTS[environment],
    )
    assert found.returncode == 0, found.stderr
    assert b"30 read" in found.stdout
    assert b"caf\\udce9" in found.stdout


@pytest.mark.parametrize(
    "module", [pytest.param("nfllm.convert", marks=pytest.mark.slow), "nfllm.report"]
)
def test_an_error_about_such_a_name_is_one_line(tmp_path, module):
    arguments = [str(tmp_path / LATIN_1), *(["--out"] * (module == "nfllm.report")), LATIN_1]
    found = command(module, *arguments, PYTHONIOENCODING="ascii")
    assert found.returncode == 2
    assert found.stderr.startswith(b"error: ")
    assert found.stderr.count(b"\n") == 1


def test_a_report_about_such_a_run(tmp_path):
    """Its name, its corpus and what happened hold what UTF-8 cannot."""
    run = synthetic_runs.write_run(tmp_path / LATIN_1, {}, None, 3.0)
    (run / "corpus.json").write_text(json.dumps({"sources": [f"/data/{LATIN_1}"], "\ud800": 1}))
    with open(run / "metrics.jsonl", "a") as file:
        event = {"step": 3, "kind": "event", "event": "resumed", "message": f"from {LATIN_1}"}
        file.write(json.dumps(event) + "\n")
    page = write_report([run], tmp_path / "out")
    assert "caf\\udce9" in page.read_text(encoding="utf-8")


def test_where_a_library_needs_utf8_the_name_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match=r"data_dir=.*caf\\udce9 is not valid UTF-8"):
        nfllm.data.load(data_config(tmp_path / LATIN_1), 16)
    with pytest.raises(RunError, match=r"--workdir .*caf\\udce9 is not valid UTF-8"):
        check_writable(epath.Path(tmp_path / LATIN_1))
    assert not list(tmp_path.iterdir())
