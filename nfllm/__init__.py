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
    "convert": "nfllm.convert",
    "data": "nfllm.data",
    "load_run": "nfllm.run",
}

__all__ = [
    "Captured",
    "Decoder",
    "Run",
    "analysis",
    "analyze",
    "capture",
    "convert",
    "data",
    "load_run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from nfllm.version import nfllm_version

        return nfllm_version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nfllm' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return module if _EXPORTS[name] == f"nfllm.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
