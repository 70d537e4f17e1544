"""What an installed wheel must do, away from the checkout: `python wheel.py`."""

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

# Not nfllm.data, which says in a line that configs/ is in the repository alone.
for module in ("convert", "experiment", "report"):
    subprocess.run([sys.executable, "-m", f"nfllm.{module}", "--help"], check=True)
for file in ("report/chart.js", "report/page.css", "report/page.js", "papers/published.json"):
    assert (Path(nfllm.__file__).parent / file).is_file(), file
