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
    "Patch": "nfllm.model.patch",
    "Run": "nfllm.run",
    "analysis": "nfllm.analysis",
    "analyze": "nfllm.measure.analyze",
    "capture": "nfllm.model.capture",
    "convert": "nfllm.convert",
    "data": "nfllm.data",
    "evaluate": "nfllm.measure.evaluation",
    "generate": "nfllm.measure.generation",
    "head_importance": "nfllm.measure.head_importance",
    "interventions": "nfllm.measure.interventions",
    "load_run": "nfllm.run",
    "logit_lens": "nfllm.measure.logit_lens",
    "register_activation": "nfllm.model.register",
    "register_analysis": "nfllm.measure.register",
    "register_attention_transform": "nfllm.model.register",
    "register_normalization": "nfllm.model.register",
    "steps": "nfllm.run",
}
_MODULES = {"analysis", "convert", "data", "interventions"}

__all__ = [
    "Captured",
    "Decoder",
    "Patch",
    "Run",
    "analysis",
    "analyze",
    "capture",
    "convert",
    "data",
    "evaluate",
    "generate",
    "head_importance",
    "interventions",
    "load_run",
    "logit_lens",
    "register_activation",
    "register_analysis",
    "register_attention_transform",
    "register_normalization",
    "steps",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from nfllm.version import nfllm_version

        return nfllm_version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nfllm' has no attribute {name!r}")
    module = importlib.import_module(_EXPORTS[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
