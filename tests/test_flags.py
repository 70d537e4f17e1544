"""Command lines: what they mean, and errors of one line that name the argument."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfllm.config import ConfigError
from nfllm.config.files import load_config
from nfllm.config.overrides import override_value
from nfllm.flags import split_overrides

ROOT = Path(__file__).parents[1]
GPT2 = str(ROOT / "configs" / "gpt2_codeparrot.py")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("training.steps", "1e3", 1000),
        ("training.steps", "7", 7),
        ("optimizer.learning_rate", "3", 3.0),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("model.mlp_bias", "TRUE", True),
        ("model.mlp_bias", "0", False),
        ("model.activation", "None", "None"),  # not one of its values: `Config` says so
        ("data.sources", "a=b,None", "a=b,None"),
        *(
            (name, text, None)
            for name in (
                "model.mlp_dim",
                "optimizer.warmup_steps",
                "model.tie_embeddings",
                "data.data_dir",
                "training.compilation_cache",
                "model.slope_sharing",
                "model.negative_slope",
            )
            for text in ("None", "none")
        ),
    ],
)
def test_values_are_of_the_type_of_their_key(name, text, value):
    found = override_value(name, text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("training.steps", "1.5", "--config.training.steps=1.5 must be a whole number"),
        ("training.steps", "inf", "--config.training.steps=inf must be a whole number"),
        ("training.steps", "None", "--config.training.steps=None must be a whole number"),
        ("model.mlp_dim", "wide", "--config.model.mlp_dim=wide must be a whole number or None"),
        ("optimizer.learning_rate", "fast", "learning_rate=fast must be a number"),
        ("model.mlp_bias", "maybe", "mlp_bias=maybe must be true or false"),
        (
            "optimizer.lr",
            "1",
            "unknown key 'lr' in --config.optimizer.lr; did you mean 'learning_r",
        ),
        ("optimizer.wd", "1", "did you mean 'weight_decay'"),
        ("training.learning_rate", "1", "did you mean optimizer.learning_rate"),
        ("modle.num_layers", "1", "unknown section 'modle'.*did you mean 'model'"),
        ("training", "1", "unknown key '' in --config.training"),
    ],
)
def test_values_and_keys_that_cannot_be(name, text, message):
    with pytest.raises(ConfigError, match=message):
        override_value(name, text)


def test_overrides_are_told_from_other_arguments():
    changes, others = split_overrides(
        [
            "--workdir=x",
            "--config.training.steps",
            "5",
            "-config.data.data_dir=None",
            "--config.model.mlp_bias",
            "--noconfig.model.scan_layers",
            "--noreport",
            "--config=configs/default.py",
            "--config.training.steps=6",
            "--",
            "--config.training.steps=7",
        ]
    )
    assert changes == {
        "training.steps": 6,
        "data.data_dir": None,
        "model.mlp_bias": True,
        "model.scan_layers": False,
    }
    assert others == [
        "--workdir=x", "--noreport", "--config=configs/default.py", "--",
        "--config.training.steps=7",
    ]  # fmt: skip
    for arguments in (["--config.training.steps"], ["--config.training.steps", "--noreport"]):
        with pytest.raises(ConfigError, match="has no value; write --config"):
            split_overrides(arguments)
    with pytest.raises(ConfigError, match="is not a flag; write --config"):
        split_overrides(["--noconfig.training.steps"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nowhere.py", "--config nowhere.py does not exist; give a file such as configs/default"),
        (f"{GPT2}:sm+x", r":sm\+x: unknown variant 'sm\+x'; did you mean 'sm\+r'"),
        (
            str(ROOT / "configs" / "default.py") + ":x",
            "gives get_config.. 'x': too many positional",
        ),
        (str(ROOT / "configs" / "paper.py"), "a grid of runs, for `python -m nfllm.experiment "),
        (str(ROOT / "README.md"), "cannot be read as Python"),
        (str(ROOT / "nfllm" / "version.py"), "has no function get_config"),
    ],
)
def test_files_that_give_no_config(choice, message):
    with pytest.raises(ConfigError, match=message):
        load_config(choice)


@pytest.mark.parametrize("choice", [GPT2, f"{GPT2}:sm+r"])
def test_files_that_give_one(choice):
    assert load_config(choice).model.architecture == "gpt2"


def _run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_help_names_every_flag_and_is_no_error():
    done = _run("--help")
    assert done.returncode == 0
    for flag in ("--config:", "--workdir:", "--[no]report:", "--coordinator:"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    "argument",
    ["--config.training.steps=many", "--nonsense=1", "--num_processes=two", "--config=paper.py"],
)
def test_a_wrong_argument_is_one_line(argument):
    done = _run(argument)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert argument.split("=")[0].strip("-").rpartition(".")[2] in line


_FAULTS = {
    "config.model.num_layer = 12": "line 5: unknown key 'num_layer'; did you mean model.num_layers",
    "config.optimizer.learnig_rate = 1.0": "did you mean optimizer.learning_rate",
    "config.nothing_like_it = 1": "line 5: unknown key 'nothing_like_it'$",
    "config.model.num_layers = '12'": "line 5: TypeError: Could not override field 'num_layers'",
    "config.model = undefined": "line 5: NameError: name 'undefined' is not defined",
}


@pytest.mark.parametrize("line", _FAULTS)
def test_a_fault_in_a_config_file_is_one_line(tmp_path, line):
    lines = ["from nfllm.config import get_config as default", "", "def get_config():"]
    lines += ["    config = default()", f"    {line}", "    return config"]
    file = tmp_path / "mine.py"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=_FAULTS[line]) as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_a_config_file_that_cannot_be_run(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\ny = z\n")
    with pytest.raises(ConfigError, match=r"mine\.py: line 2: NameError: name 'z' is not defined"):
        load_config(str(tmp_path / "mine.py"))
