"""nfllm: the workbench for normalization-free decoder language models, in JAX.

run = nfllm.load_run("runs/default")
captured = nfllm.capture(run.model, run.params, tokens_BT)
entropy_LBHT = nfllm.analysis.attention_entropy(captured.attention_probs)
"""

from typing import TYPE_CHECKING

# These imports are for type checkers and editors. Python imports a name on its first use
# (`__getattr__`), so that reading a config or a run's metrics does not need JAX.
if TYPE_CHECKING:
    from nfllm import analysis as analysis
    from nfllm import convert as convert
    from nfllm import data as data
    from nfllm import report as report
    from nfllm.convert.fold import fold as fold
    from nfllm.measure import foreign as foreign
    from nfllm.measure import interventions as interventions
    from nfllm.measure.analyze import analyze as analyze
    from nfllm.measure.evaluation import evaluate as evaluate
    from nfllm.measure.freeze import freeze_norms as freeze_norms
    from nfllm.measure.generation import generate as generate
    from nfllm.measure.head_importance import head_importance as head_importance
    from nfllm.measure.logit_attribution import logit_attribution as logit_attribution
    from nfllm.measure.logit_lens import logit_lens as logit_lens
    from nfllm.measure.register import register_analysis as register_analysis
    from nfllm.model.capture import Captured as Captured
    from nfllm.model.capture import capture as capture
    from nfllm.model.decoder import Decoder as Decoder
    from nfllm.model.patch import Patch as Patch
    from nfllm.model.register import register_activation as register_activation
    from nfllm.model.register import register_attention_transform as register_attention_transform
    from nfllm.model.register import register_normalization as register_normalization
    from nfllm.run import Run as Run
    from nfllm.run import load_run as load_run
    from nfllm.run import save_run as save_run
    from nfllm.run import steps as steps

    __version__: str

_MODULES = {
    "analysis": "nfllm.analysis",
    "convert": "nfllm.convert",
    "data": "nfllm.data",
    "foreign": "nfllm.measure.foreign",
    "interventions": "nfllm.measure.interventions",
    "report": "nfllm.report",
}
_MEMBERS = {
    "Captured": "nfllm.model.capture",
    "Decoder": "nfllm.model.decoder",
    "Patch": "nfllm.model.patch",
    "Run": "nfllm.run",
    "analyze": "nfllm.measure.analyze",
    "capture": "nfllm.model.capture",
    "evaluate": "nfllm.measure.evaluation",
    "fold": "nfllm.convert.fold",
    "freeze_norms": "nfllm.measure.freeze",
    "generate": "nfllm.measure.generation",
    "head_importance": "nfllm.measure.head_importance",
    "load_run": "nfllm.run",
    "logit_attribution": "nfllm.measure.logit_attribution",
    "logit_lens": "nfllm.measure.logit_lens",
    "register_activation": "nfllm.model.register",
    "register_analysis": "nfllm.measure.register",
    "register_attention_transform": "nfllm.model.register",
    "register_normalization": "nfllm.model.register",
    "save_run": "nfllm.run",
    "steps": "nfllm.run",
}
__all__ = [
    "Patch",
    "analysis",
    "analyze",
    "capture",
    "evaluate",
    "fold",
    "foreign",
    "freeze_norms",
    "generate",
    "head_importance",
    "interventions",
    "load_run",
    "logit_attribution",
    "logit_lens",
    "register_activation",
    "register_analysis",
    "register_attention_transform",
    "register_normalization",
    "report",
    "save_run",
    "steps",
]

if not TYPE_CHECKING:  # type checkers would accept any misspelt name

    def __getattr__(name):
        from importlib import import_module

        if name == "__version__":
            return import_module("nfllm.version").nfllm_version()
        if name in _MODULES:
            return import_module(_MODULES[name])
        if name in _MEMBERS:
            return getattr(import_module(_MEMBERS[name]), name)
        raise AttributeError(f"module 'nfllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names for users, without the package's other modules and the classes of results."""
    return [*__all__, "__version__", *(name for name in globals() if name.startswith("__"))]
