"""A file that registers parts, that of the guide: from a config to its run, report and grid."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from registries import restored_registries
from tiny import make_corpus, tiny_config, tiny_flags

import nfllm
from nfllm import rundir
from nfllm.config import ConfigError
from nfllm.config.extensions import import_file
from nfllm.convert import convert
from nfllm.flags import load_config
from nfllm.report.runs import read_runs
from nfllm.rundir import RunError, read_record
from nfllm.trainer.loop import fit

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("registries")]


def write_parts(folder: Path) -> Path:
    """The whole file of the guide."""
    guide = (ROOT / "docs" / "guides" / "extending.md").read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", guide, re.S) if "get_config" in c]
    (folder / "my_parts.py").write_text(code)
    return folder / "my_parts.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file, and a run that was trained by a program that had run it."""
    folder = tmp_path_factory.mktemp("own")
    file = write_parts(folder)
    with restored_registries():
        model = load_config(str(file)).model
        changes = {f"model.{key}": model[key] for key in ("activation", "normalization")}
        config = tiny_config(
            make_corpus(folder / "corpus"), folder / "data", training__steps=2, **changes
        )
        fit(config, folder / "run")
    return file, folder / "run"


def test_the_run_says_what_it_is_and_what_registered_its_parts(trained):
    file, path = trained
    record = json.loads((path / rundir.RECORD_FILE).read_text())
    assert record["statistics"] == "norm-free, final normalised"
    assert set(record["imports"]) == {"model.activation", "model.normalization"}
    assert {source["file"] for source in record["imports"].values()} == {str(file)}
    assert "blocks.mlp_norm.gain" in record["undecayed_parameters"]


def test_without_the_file_its_name_is_told(trained):
    file, path = trained
    message = f"model.activation='my_gelu_squared' was registered by {re.escape(str(file))}"
    with pytest.raises(RunError, match=f"{message}.* --import {re.escape(str(file))}"):
        nfllm.load_run(path)
    (run,) = read_runs([path])
    assert message.replace("\\", "") in run.warnings[0]
    with pytest.raises(RunError, match=message):
        convert(path, path.parent / "elsewhere")


def test_with_the_file_the_run_is_as_any_other(trained, caplog):
    file, path = trained
    import_file(str(file))
    run = nfllm.load_run(path)
    assert "whose content differs" not in caplog.text
    tokens_BT = run.tokenizer.encode("def f(x):")[None]
    captured = nfllm.capture(run.model, run.params, tokens_BT)
    pre, post = (np.asarray(x, np.float64) for x in (captured.mlp_pre, captured.mlp_post))
    from scipy.special import ndtr

    np.testing.assert_allclose(post, (pre * ndtr(pre)) ** 2, atol=1e-6)
    (read,) = read_runs([path])
    assert read.label == "SM+my_scale+my_gelu_squared"
    with pytest.raises(ConfigError, match="'my_scale' cannot be expressed in transformers"):
        convert(path, path.parent / "elsewhere")


def test_a_file_that_has_changed_is_named(trained, tmp_path, caplog):
    file, path = trained
    (tmp_path / "my_parts.py").write_text(file.read_text() + "\n# another\n")
    import_file(str(tmp_path / "my_parts.py"))
    read_record(path)
    assert "whose content differs" in caplog.text


def test_a_file_that_cannot_be_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"--import nowhere\.py does not exist"):
        import_file("nowhere.py")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"bad\.py cannot be run \(ZeroDivisionError"):
        import_file(str(tmp_path / "bad.py"))


GRID = """
import nfllm
from my_parts import gelu_squared
from nfllm.config import get_config
from nfllm.experiment import Experiment, Group, Variant

SCALES = ("tiny",)


def get_experiment(scale):
    base = get_config()
    base.update_from_flattened_dict({flags!r})
    variants = {{"mine": Variant({{"model.activation": "my_gelu_squared"}})}}
    return Experiment("note", {{"main": Group("Mine", base, variants)}})
"""


def test_a_grid_names_registered_parts_and_its_runs_import_them(tmp_path):
    write_parts(tmp_path)
    flags = tiny_flags(make_corpus(tmp_path / "corpus"), tmp_path / "data", training__steps=2)
    (tmp_path / "grid.py").write_text(GRID.format(flags=flags))
    command = [sys.executable, "-m", "nfllm.experiment", "grid.py", "--scale", "tiny"]
    done = subprocess.run(
        [*command, "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| mine | norm-free, final normalised |" in done.stdout
    record = json.loads((tmp_path / "out" / "main" / "mine" / "seed0" / "config.json").read_text())
    assert record["imports"]["model.activation"]["file"] == str(tmp_path / "my_parts.py")


def test_a_command_takes_the_file(tmp_path):
    """And the file, which runs first, leaves the choice of devices to the config."""
    file = write_parts(tmp_path)
    flags = tiny_flags(make_corpus(tmp_path / "corpus"), tmp_path / "data", training__steps=2)
    flags |= {"model.activation": "my_gelu_squared", "parallel.cpu_devices": 2}
    options = [f"--config.{key}={value}" for key, value in flags.items()]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "train.py",
            "--noreport",
            "--import",
            file,
            *options,
            "--workdir",
            "run",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
