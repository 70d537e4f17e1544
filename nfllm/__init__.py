"""nfllm: the workbench for normalization-free decoder language models, in JAX.

run = nfllm.load_run("runs/default")
captured = nfllm.capture(run.model, run.params, tokens_BT)
entropy_LBHT = nfllm.analysis.attention_entropy(captured.attention_probs)
"""

import importlib
from typing import Any

# Loaded on first use: reading a config or a run's metrics needs no JAX.
_EXPORTS = {
    "Captured": "nfllm.model.capture",
    "Decoder": "nfllm.model.decoder",
    "Run": "nfllm.run",
    "analysis": "nfllm.analysis",
    "analyze": "nfllm.streaming",
    "capture": "nfllm.model.capture",
    "load_run": "nfllm.run",
}

__all__ = ["Captured", "Decoder", "Run", "analysis", "analyze", "capture", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nfllm' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return module if name == "analysis" else getattr(module, name)
