"""`python -m nfllm.private_cost`, as a user calls it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import make_record

from nfllm.private_cost.__main__ import main
from nfllm.rundir import write_record

ROOT = Path(__file__).parents[1]
GPT2 = str(ROOT / "configs" / "gpt2_codeparrot.py")
DEFAULT = str(ROOT / "configs" / "default.py")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    found = capsys.readouterr()
    return code, re.sub(r" {2,}", "  ", found.out), found.err


def test_a_config(capsys):
    code, out, err = run(capsys, f"{GPT2}:sm+ln+g")
    assert (code, err) == (0, "")
    assert "One forward pass of 128 tokens" in out
    assert "\nsoftmax  18,432  128  2,359,296\n" in out
    assert "MLP 14.5B, attention 7.7B\n" in out
    assert "\nactivation (gelu)  14,155,776  14,155,776  4,718,592  14,155,776\n" in out
    assert "\nGELU beyond ReLU  4,718,592  3,365.6  15.881  62.7%  fit\n" in out
    assert "\ntotal  25.315  fit\n" in out
    assert "a fit to 27 published rows, not by derivation" in out
    assert "time:" not in out


def test_keys_of_a_config_can_be_changed(capsys):
    arguments = ("--config.model.context_length=256", "--tokens", "200")
    code, out, _ = run(capsys, f"{GPT2}:sm+ln+r", "--config.model.num_layers", "18", *arguments)
    assert code == 0
    assert "\nsoftmax  43,200  200  8,640,000\n" in out


def test_a_run(capsys, tmp_path):
    write_record(tmp_path, make_record({"model.activation": "silu"}))
    code, out, err = run(capsys, str(tmp_path), "--tokens=10")
    assert (code, err) == (0, "")
    assert "\ntoken embedding  10  4,096  40,960  10,485,760\n" in out
    assert "not counted, since no protocol is known: activation (silu)\n" in out
    assert "no total: fitted at width 768, not 128; " in out
    code, _, err = run(capsys, str(tmp_path), "--config.model.num_layers=2")
    assert code == 2
    assert "is a run, whose keys cannot be changed" in err


def test_the_vocabulary_is_that_of_the_tokenizer(capsys, tmp_path):
    from nfllm.data.tokenizer import bytes_tokenizer

    _, out, _ = run(capsys, DEFAULT, "--config.data.tokenizer=bytes")
    assert "\noutput head  128  257  " in out
    bytes_tokenizer().save(tmp_path / "tokenizer.json")
    _, out, _ = run(capsys, DEFAULT, f"--config.data.tokenizer={tmp_path / 'tokenizer.json'}")
    assert "\noutput head  128  257  " in out


def test_a_lower_bound_on_the_time(capsys):
    link = ("--bandwidth_mbps=100", "--round_trip_ms=80", "--rounds=1000")
    _, out, _ = run(capsys, f"{GPT2}:sm+ln+g", *link)
    assert (
        "time: at least 2,105.2 s; 25.31 GB at 100 Mbit/s; round trips: 1,000 of 80 ms; "
        "computation comes on top\n"
    ) in out
    _, out, _ = run(capsys, DEFAULT, *link)
    assert "time: at least 80.0 s; round trips: 1,000 of 80 ms; the bytes are not known\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; name the directory of a run"),
        (["nowhere.py"], "nowhere.py does not exist; give a file"),
        ([str(ROOT / "configs" / "paper.py")], "has no function get_config(); it is a grid"),
        ([f"{GPT2}:sm+x"], "unknown variant 'sm+x'; did you mean"),
        ([DEFAULT, "--tokens=129"], "--tokens 129 exceeds model.context_length=128"),
        ([DEFAULT, "--tokens=0"], "num_tokens=0 must be a whole number of at least 1"),
        ([DEFAULT, "--bandwidth_mbps=0"], "bits_per_second=0.0 must be greater than 0"),
        ([DEFAULT, "--bandwidth_mbps=1", "--rounds=-1"], "num_rounds=-1 must not be negative"),
        ([DEFAULT, "--round_trip_ms=1"], "--round_trip_ms needs --bandwidth_mbps"),
        ([DEFAULT, "--rounds=5"], "--rounds needs --bandwidth_mbps"),
        ([DEFAULT, "--config.model.actvation=relu"], "did you mean 'activation'?"),
        ([DEFAULT, "--config.model.num_heads=5"], "model.num_heads=5 does not divide"),
        ([DEFAULT, "--config.data.tokenizer=none.json"], "data.tokenizer='none.json' is neither"),
    ],
)
def test_errors_are_one_line_before_anything_is_printed(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_config_finds_those_beside_it_from_any_directory(tmp_path):
    folder = tmp_path / "project" / "configs_of_mine"
    folder.mkdir(parents=True)
    (folder / "base.py").write_text("ACTIVATION = 'silu'\n")
    (folder / "mine.py").write_text(
        "from configs.default import get_config as default\n"
        "from configs_of_mine.base import ACTIVATION\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.model.activation = ACTIVATION\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "nfllm.private_cost", str(folder / "mine.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "activation (silu)" in done.stdout
