"""What holds for all of nfllm.analysis: its imports, its exports, and that it can be traced."""

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nfllm import analysis

FILES = sorted(Path(analysis.__file__).parent.glob("*.py"))


def test_imports_nothing_but_jax_numpy_and_scipy() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                root = module.split(".")[0]
                known = root in {"jax", "numpy", "scipy"} or root in sys.stdlib_module_names
                assert known or module.startswith("nfllm.analysis"), (file.name, module)


def test_exports_are_named_once() -> None:
    assert len(set(analysis.__all__)) == len(analysis.__all__)


NOT_TRACED = {
    "alerts",
    "compare_seeds",
    "find_onset",
    "first_bad_site",
    "reference_maximum",
    "seed_interval",
    "to_host",
}

# Of Python numbers and of arrays' types; no array is computed on.
OF_NO_ARRAY = {"array_namespace", "causal_entropy_ceiling", "causal_mask", "visible_keys"}
RECORDS = {
    "Alert",
    "AlertThresholds",
    "BadSite",
    "Interval",
    "Ledger",
    "LinearFit",
    "Onset",
    "SeedComparison",
}


def test_what_cannot_be_traced_is_named_in_the_docstring() -> None:
    for name in NOT_TRACED:
        assert f"`{name}`" in analysis.__doc__


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)
PROBS = np.full((2, 3, 6, 6), 1 / 6, np.float32)
X = RNG.normal(size=(2, 3, 6, 8)).astype(np.float32)
TOKENS = RNG.integers(0, 3, size=(2, 6))
ENTROPY = np.ones((2, 3), np.float32)
SQUARES = np.stack([np.eye(8, dtype=np.float32)] * 2)
RATES = np.full(5, 0.1, np.float32)
BOUNDS = np.array([-1.0, 0.0, 1.0], np.float32)

# Each with arrays that become tracers, whose values no function may ask for.
TRACED: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "ClassResponses": (lambda x, t: analysis.ClassResponses.of(x[:, 0], t[0], 3), (X, TOKENS)),
    "Comoments": (lambda x, y: analysis.Comoments.of(x, y, axis=(0, 2)), (X, X)),
    "Covariance": (analysis.Covariance.of, (X,)),
    "Histogram": (lambda x, edges: analysis.Histogram.of(x, edges, keep=1), (X, BOUNDS)),
    "Moments": (lambda x: analysis.Moments.of(x, axis=(0, 2)), (X,)),
    "NonfiniteCounts": (lambda x: analysis.count_nonfinite(x, keep=1), (X,)),
    "UnitActivity": (analysis.UnitActivity.of, (X, X)),
    "activation_moments": (analysis.activation_moments, (X, X)),
    "attention_entropy": (analysis.attention_entropy, (PROBS,)),
    "attention_entropy_from_logits": (analysis.attention_entropy_from_logits, (LOGITS,)),
    "attention_entropy_from_qk": (analysis.attention_entropy_from_qk, (X, X)),
    "bootstrap_interval": (
        lambda x: analysis.bootstrap_interval(x, key=jax.random.key(0), num_resamples=10),
        (X,),
    ),
    "branch_ratio": (analysis.branch_ratio, (X, X)),
    "collapse_share": (analysis.collapse_share, (ENTROPY, RATES[0])),
    "count_nonfinite": (lambda x, use: analysis.count_nonfinite(x, where=use), (X, X > 0)),
    "effective_heads": (analysis.effective_heads, (SQUARES,)),
    "effective_rank": (analysis.effective_rank, (X,)),
    "eigenvalue_shares": (analysis.eigenvalue_shares, (SQUARES,)),
    "entropy_by_temperature": (analysis.entropy_by_temperature, (LOGITS, RATES)),
    "entropy_floor": (lambda norms: analysis.entropy_floor(norms, 8), (RATES,)),
    "head_divergence": (analysis.head_divergence, (PROBS,)),
    "head_entropy": (lambda x, use: analysis.head_entropy(x, where=use), (ENTROPY, ENTROPY > 0)),
    "head_entropy_spread": (analysis.head_entropy_spread, (ENTROPY,)),
    "head_histogram": (analysis.head_histogram, (ENTROPY, RATES[0])),
    "induction_score": (analysis.induction_score, (PROBS, TOKENS)),
    "jensen_shannon": (analysis.jensen_shannon, (PROBS, PROBS)),
    "kurtosis": (analysis.kurtosis, (X,)),
    "last_keys_mass": (lambda probs: analysis.last_keys_mass(probs, 2), (PROBS,)),
    "ledger": (lambda x, loss: analysis.ledger({"mlp_pre": x, "loss": loss}), (X, RATES[0])),
    "logit_spread": (analysis.logit_spread, (LOGITS,)),
    "mean_norm": (analysis.mean_norm, (X,)),
    "merge_all": (lambda x: analysis.merge_all([analysis.Moments.of(x, axis=0)] * 2), (X,)),
    "merge_ledgers": (
        lambda x: analysis.merge_ledgers(*[analysis.ledger({"mlp_pre": x})] * 2),
        (X,),
    ),
    "norm_by_layer": (lambda x: analysis.norm_by_layer({"kernel": x}), (X,)),
    "normalized_entropy": (
        lambda x, n: analysis.normalized_entropy(x, num_visible=n),
        (ENTROPY, ENTROPY),
    ),
    "overload_share": (analysis.overload_share, (ENTROPY, RATES[0])),
    "participation_ratio": (analysis.participation_ratio, (SQUARES,)),
    "previous_token_score": (analysis.previous_token_score, (PROBS,)),
    "projected_participation_ratio": (analysis.projected_participation_ratio, (SQUARES, SQUARES)),
    "rms": (analysis.rms, (X,)),
    "saturation": (analysis.saturation, (X,)),
    "shannon_entropy": (analysis.shannon_entropy, (PROBS,)),
    "sink_score": (analysis.sink_score, (PROBS,)),
    "spectral_divergence": (analysis.spectral_divergence, (SQUARES, SQUARES)),
    "spectral_entropy": (analysis.spectral_entropy, (SQUARES,)),
    "token_similarity": (analysis.token_similarity, (X,)),
    "update": (lambda x: analysis.update(None, analysis.Moments.of(x, axis=0)), (X,)),
    "weight_decay_curve": (
        lambda initial, rates: analysis.weight_decay_curve(initial, rates, 0.1),
        (X[0, 0, 0], RATES),
    ),
}


def test_every_public_name_is_traced_or_said_not_to_be() -> None:
    groups = (set(TRACED), NOT_TRACED, OF_NO_ARRAY, RECORDS)
    assert set().union(*groups) == set(analysis.__all__)
    assert sum(map(len, groups)) == len(analysis.__all__)  # none is in two


def _with_results(value: Any) -> Any:
    """A state with what all its methods make of it."""
    if not hasattr(value, "merge"):
        return value
    methods = [name for name, method in vars(type(value)).items() if inspect.isfunction(method)]
    public = [name for name in methods if not name.startswith("_") and name != "merge"]
    return value.merge(value), [getattr(value, name)() for name in public]


@pytest.mark.parametrize("name", TRACED)
def test_every_function_can_be_traced(name: str) -> None:
    function, arrays = TRACED[name]
    traced = jax.eval_shape(lambda *tracers: _with_results(function(*tracers)), *arrays)
    leaves = jax.tree.leaves(traced)
    assert leaves
    assert {leaf.dtype.name for leaf in leaves} <= {"float32", "int32"}
