"""What an installed wheel must do in an empty folder, away from the checkout: `python wheel.py`."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

import nfllm

assert "site-packages" in nfllm.__file__
assert nfllm.__version__ == version("nfllm")

uniform = np.tril(np.ones((1, 4, 4))) / np.arange(1, 5)[:, None]
entropy = nfllm.analysis.head_entropy(nfllm.analysis.attention_entropy(uniform))
np.testing.assert_allclose(entropy, nfllm.analysis.causal_entropy_ceiling(4), rtol=1e-6)


def command(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"nfllm.{module}", *arguments], check=True)


Path("corpus").mkdir()
for number in range(60):
    Path(f"corpus/{number}.txt").write_text(f"def f{number}(x):\n    return x + {number}\n" * 40)
DATA = {
    "data.dataset": "text_files",
    "data.sources": "corpus/*.txt",
    "data.tokenizer": "bytes",
    "data.validation_split": "hash",
    "data.data_dir": "prepared",
}
TINY = {
    "model.num_layers": 1,
    "model.context_length": 32,
    "training.steps": 2,
    "training.batch_size": 4,
    "training.gradient_accumulation": 1,
    "training.dtype": "float32",
    "evaluation.every": 2,
    "evaluation.max_windows": 8,
    "telemetry.every": 2,
    "checkpoint.every": 2,
}


def flags(values: dict[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


# A config of one's own may import the shipped ones.
Path("mine.py").write_text(
    "from configs.default import get_config as default_config\n"
    "from configs.gpt2_codeparrot import get_config as gpt2_config\n"
    "def get_config():\n"
    "    config = default_config()\n"
    "    config.model.normalization = gpt2_config('sm+ln').model.normalization\n"
    "    return config\n"
)
command("data", "--config=mine.py", *flags(DATA), "--config.model.context_length=32")
command("train", "--config=mine.py", "--workdir=run", *flags(DATA | TINY))
assert json.loads(Path("run/config.json").read_text())["config"]["model"]["mlp_dim"] is None
assert Path("run/report/index.html").is_file()
assert nfllm.load_run("run").config.model.normalization == "layernorm"
for name in ("default.py", "gpt2_codeparrot.py:sm+g", "pythia70m_codeparrot.py"):
    command("private_cost", f"configs/{name}", "--config.data.tokenizer=bytes")
command("train", "--config=configs/gpt2_codeparrot.py:sm+r", "--help")

grid = {key: value for key, value in (DATA | TINY).items() if key != "data.tokenizer"}
command("experiment", "configs/paper.py", "--scale=minute", "--out=grid", *flags(grid))
(start,) = json.loads(Path("grid/provenance.json").read_text())
assert start["grid"] == "configs/paper.py"

for module in ("convert", "evaluate", "generate", "report"):
    command(module, "--help")
for file in ("report/chart.js", "report/page.css", "report/page.js", "papers/aero.json"):
    assert (Path(nfllm.__file__).parent / file).is_file(), file
