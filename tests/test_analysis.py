"""What holds for all of nfllm.analysis: its imports, its exports, and that it can be traced."""

import ast
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfllm import analysis

FILES = sorted(Path(analysis.__file__).parent.glob("*.py"))


def test_imports_nothing_but_jax_and_numpy() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                root = module.split(".")[0]
                known = root in {"jax", "numpy"} or root in sys.stdlib_module_names
                assert known or module.startswith("nfllm.analysis"), (file.name, module)


def test_exports_exist_and_have_docstrings() -> None:
    assert len(set(analysis.__all__)) == len(analysis.__all__)
    for name in analysis.__all__:
        value = getattr(analysis, name)
        assert name == "Ledger" or len(value.__doc__) > 30, name


NOT_TRACED = {
    "alerts",
    "compare_seeds",
    "find_onset",
    "first_bad_site",
    "reference_maximum",
    "seed_interval",
    "to_host",
}


def test_what_cannot_be_traced_is_named_in_the_docstring() -> None:
    for name in NOT_TRACED:
        assert f"`{name}`" in analysis.__doc__


def test_every_function_can_be_traced() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    probs = np.full((2, 3, 6, 6), 1 / 6, np.float32)
    x = rng.normal(size=(2, 3, 6, 8)).astype(np.float32)
    tokens = rng.integers(0, 3, size=(2, 6))
    arrays = {"logits": logits, "probs": probs, "x": x, "tokens": tokens}

    def everything(logits: Any, probs: Any, x: Any, tokens: Any) -> dict[str, Any]:
        entropy = analysis.attention_entropy(probs)
        heads = analysis.head_entropy(entropy)
        covariance = analysis.Covariance.of(x).covariance()
        activity = analysis.UnitActivity.of(x, jnp.maximum(x, 0))
        classes = analysis.ClassResponses.of(x, tokens[:, None].repeat(3, 1)[0], 3)
        divergence = analysis.head_divergence(probs)
        moments = analysis.Moments.of(x, axis=(0, 2))
        return {
            "entropy": entropy,
            "from_logits": analysis.attention_entropy_from_logits(logits, causal=True),
            "from_qk": analysis.attention_entropy_from_qk(x, x),
            "normalized": analysis.normalized_entropy(entropy),
            "histogram": analysis.head_histogram(heads, 1.5),
            "overload": analysis.overload_share(heads, 1.5),
            "collapse": analysis.collapse_share(heads, 1.5),
            "spread": analysis.head_entropy_spread(heads),
            "effective_heads": analysis.effective_heads(divergence),
            "sink": analysis.sink_score(probs),
            "last_keys": analysis.last_keys_mass(probs, 2),
            "previous": analysis.previous_token_score(probs),
            "induction": analysis.induction_score(probs, tokens),
            "logit_spread": analysis.logit_spread(logits, causal=True),
            "temperature": analysis.entropy_by_temperature(logits, [1.0, 2.0]),
            "ledger": analysis.ledger({"mlp_pre": x, "loss": x[0, 0, 0, 0]}),
            "fit": analysis.activation_moments(x, jnp.maximum(x, 0)).linear_fit(),
            "activity": (activity.dead_share(), activity.always_on_share(), activity.sparsity()),
            "classes": (classes.specialization(), classes.intra_class_selectivity()),
            "decay": analysis.weight_decay_curve(x[0, 0, 0], jnp.abs(x[0, 0, 1]), 0.1),
            "spectra": analysis.spectral_divergence(covariance[0], covariance[1]),
            "shares": analysis.eigenvalue_shares(covariance),
            "spectral_entropy": analysis.spectral_entropy(covariance),
            "projected": analysis.projected_participation_ratio(covariance, covariance),
            "shannon": analysis.shannon_entropy(probs),
            "jensen_shannon": analysis.jensen_shannon(probs, probs),
            "nonfinite": analysis.count_nonfinite(x),
            "participation": analysis.participation_ratio(covariance),
            "moments": (moments.merge(moments), moments.variance(), moments.standard_error()),
            "histogram_state": analysis.Histogram.of(x, [-1.0, 0.0, 1.0], keep=1),
            "norms": (analysis.mean_norm(x), analysis.rms(x), analysis.norm_by_layer({"x": x})),
            "branch": analysis.branch_ratio(x, 2 * x),
            "similarity": analysis.token_similarity(x),
            "rank": analysis.effective_rank(x),
            "kurtosis": analysis.kurtosis(x),
            "floor": analysis.entropy_floor(analysis.mean_norm(x, keep=3), jnp.arange(1, 7)),
            "bootstrap": analysis.bootstrap_interval(x, key=jax.random.key(0), num_resamples=10),
        }

    traced = jax.eval_shape(everything, **arrays)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(traced)} == {"float32", "int32"}
    assert traced["histogram"].shape == (4,)
    assert traced["moments"][0].mean.shape == (3, 8)
