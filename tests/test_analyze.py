"""Streaming over a split equals one pass: over batches, over devices, over processes."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from random_model import random_model
from trainer import TIMEOUT_SECONDS
from training_parts import VOCAB_SIZE, random_batch

from nfllm import analysis
from nfllm.config import IGNORED_LABEL
from nfllm.data.batches import Batch
from nfllm.measure.analyze import accumulate, analyze
from nfllm.measure.merging import merge_states
from nfllm.measure.metrics import METRICS, class_responses, find_metrics
from nfllm.model.capture import Captured, capture
from nfllm.model.decoder import Decoder

CLASSES = class_responses(np.arange(VOCAB_SIZE) % 3, 3)
SEQUENCES = np.concatenate([random_batch(seed, 4).tokens for seed in range(2)])


@pytest.fixture(scope="module")
def model_and_params() -> tuple[Decoder, Any]:
    """A random model whose attention is far from uniform."""
    return random_model(0.3, activation="gelu")


@pytest.fixture(scope="module")
def one_pass(model_and_params: tuple[Decoder, Any]) -> dict[str, Any]:
    return analyze(*model_and_params, [SEQUENCES], [*METRICS, CLASSES])


@pytest.fixture(scope="module")
def captured(model_and_params: tuple[Decoder, Any]) -> Captured:
    return capture(*model_and_params, SEQUENCES)


def assert_close(actual: Any, expected: Any, rtol: float) -> None:
    def check(path: Any, a: np.ndarray, b: np.ndarray) -> None:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=name)

    jax.tree_util.tree_map_with_path(check, actual, expected)


def test_streaming_equals_one_pass(
    model_and_params: tuple[Decoder, Any], one_pass: dict[str, Any]
) -> None:
    batches = [SEQUENCES[:4], SEQUENCES[4:]]
    streamed = analyze(*model_and_params, batches, [*METRICS, CLASSES])
    assert set(streamed) == {*METRICS, "class_responses"}
    # Within a batch sums are float32, and matrix products depend on the number of rows; small
    # differences of eigenvalues show it most.
    spectra = {"effective_rank", "spectra", "head_diversity"}
    for name in streamed:
        # The moments of a statistic that varies little hold differences of rounded numbers.
        result, whole = streamed[name], one_pass[name]
        if isinstance(whole, analysis.Moments):
            result = (result.mean, result.std(), result.minimum, result.maximum)
            whole = (whole.mean, whole.std(), whole.minimum, whole.maximum)
        assert_close({name: result}, {name: whole}, 5e-5 if name in spectra else 1e-6)


def test_results_are_those_of_the_captured_arrays(
    one_pass: dict[str, Any], captured: Captured
) -> None:
    probs = np.asarray(captured.attention_probs, np.float64)
    entropy_LBH = -(probs * np.log(np.where(probs > 0, probs, 1))).sum(-1).mean(-1)
    assert entropy_LBH.std() > 0.05
    head_entropy = one_pass["head_entropy"]
    np.testing.assert_allclose(head_entropy.mean, entropy_LBH.mean(1), atol=2e-6)
    np.testing.assert_allclose(head_entropy.std(ddof=1), entropy_LBH.std(1, ddof=1), atol=2e-6)
    np.testing.assert_allclose(
        one_pass["sequence_entropy"], np.moveaxis(entropy_LBH, 1, 0), atol=2e-6
    )
    pre, post = (np.asarray(x, np.float64) for x in (captured.mlp_pre, captured.mlp_post))
    np.testing.assert_allclose(
        one_pass["mlp_pre_rms"], np.sqrt((pre**2).mean((1, 2, 3))), rtol=1e-6
    )
    for layer in range(2):
        slope, intercept = np.polyfit(pre[layer].ravel(), post[layer].ravel(), 1)
        assert one_pass["linear_fit"].slope[layer] == pytest.approx(slope, abs=1e-6)
        assert one_pass["linear_fit"].intercept[layer] == pytest.approx(intercept, abs=1e-6)
        covariance = np.cov(post[layer].reshape(-1, post.shape[-1]), rowvar=False)
        ratio = np.trace(covariance) ** 2 / (covariance**2).sum()
        assert one_pass["spectra"].participation_ratio_post[layer] == pytest.approx(ratio, rel=1e-5)
    np.testing.assert_array_equal(one_pass["unit_activity"].on, (pre > 0).sum((1, 2)))
    residual = np.asarray(captured.residual, np.float64)
    norms = np.linalg.norm(residual, axis=-1).mean((1, 2))
    np.testing.assert_allclose(one_pass["residual_norm"].mean, norms, rtol=1e-6)
    np.testing.assert_array_equal(
        one_pass["class_responses"].num_tokens, np.bincount(SEQUENCES.ravel() % 3)
    )


def test_attention_and_mlp_ratio_hold_each_branch_against_what_it_is_added_to(
    one_pass: dict[str, Any], captured: Captured
) -> None:
    residual = np.asarray(captured.residual, np.float64)
    attention, mlp = (np.asarray(x, np.float64) for x in (captured.attention_out, captured.mlp_out))

    def norm(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x, axis=-1)

    by_attention = (norm(attention) / norm(residual[:-1])).mean((1, 2))
    by_mlp = (norm(mlp) / norm(residual[:-1] + attention)).mean((1, 2))
    np.testing.assert_allclose(one_pass["attention_ratio"].mean, by_attention, rtol=1e-5)
    np.testing.assert_allclose(one_pass["mlp_ratio"].mean, by_mlp, rtol=1e-5)


def test_ledger_finds_what_is_not_finite(
    model_and_params: tuple[Decoder, Any], one_pass: dict[str, Any]
) -> None:
    """The masked logits, at float32's lowest number, are neither counted nor the largest."""
    assert analysis.first_bad_site(one_pass["ledger"]) is None
    assert one_pass["ledger"]["attention_logits"].max_abs.max() < 1e4
    model, params = model_and_params
    kernel = params["blocks"]["mlp"]["in_kernel"].at[1, 3, 5].set(np.inf)
    mlp = {**params["blocks"]["mlp"], "in_kernel": kernel}
    broken = {**params, "blocks": {**params["blocks"], "mlp": mlp}}
    results = analyze(model, broken, [SEQUENCES[:4], SEQUENCES[4:]], ["ledger", "head_entropy"])
    site = analysis.first_bad_site(results["ledger"])
    assert (site.site, site.layer) == ("mlp_pre", 1)
    assert site.positive_inf + site.negative_inf == SEQUENCES.size


def test_filler_rows_are_left_out(
    model_and_params: tuple[Decoder, Any], one_pass: dict[str, Any]
) -> None:
    labels = SEQUENCES.copy()
    filled = Batch(
        np.concatenate([SEQUENCES, np.zeros((3, 12), np.int32)]),
        np.concatenate([labels, np.full((3, 12), IGNORED_LABEL, np.int32)]),
    )
    only_filler = Batch(filled.tokens[-3:], filled.labels[-3:])
    results = analyze(*model_and_params, [filled, only_filler], ["sequence_entropy"])
    np.testing.assert_array_equal(results["sequence_entropy"], one_pass["sequence_entropy"])


def test_several_devices_equal_one(
    model_and_params: tuple[Decoder, Any], one_pass: dict[str, Any]
) -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    names = ["head_entropy", "linear_fit", "unit_activity", "sequence_entropy"]
    results = analyze(
        *model_and_params, [SEQUENCES], names, put=lambda x: jax.device_put(x, sharding)
    )
    assert len(jax.devices()) == 4
    for name in names:
        assert_close(results[name], one_pass[name], 1e-5)


def test_states_of_two_hosts_merge_to_that_of_one(
    model_and_params: tuple[Decoder, Any], one_pass: dict[str, Any]
) -> None:
    metrics = find_metrics(["head_entropy", "linear_fit", "sequence_entropy"])
    hosts = [
        accumulate(*model_and_params, [SEQUENCES[rows]], metrics)
        for rows in (slice(0, 4), slice(4, 8))
    ]
    merged = merge_states(*hosts)
    for name, metric in metrics.items():
        result = metric.result(merged[name])
        if name == "head_entropy":
            assert_close(
                (result.mean, result.std()), (one_pass[name].mean, one_pass[name].std()), 1e-6
            )
        else:
            assert_close(result, one_pass[name], 1e-6)


PROCESS = """
import sys
import jax
import numpy as np
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize("localhost:" + sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from nfllm import analysis
from nfllm.analysis import Moments
from nfllm.measure.merging import merge_across_processes
from nfllm.measure.metrics import Rows
x = np.random.default_rng(0).normal(size=(5, 3)) / 3
mine = x[:2] if jax.process_index() == 0 else x[2:]
state = {"moments": Moments(*(np.full(3, float(len(mine))), mine.mean(0), mine.var(0) * len(mine),
                              mine.min(0), mine.max(0))), "rows": Rows(mine)}
merged = merge_across_processes(state)
np.testing.assert_array_equal(merged["rows"].values, x)
np.testing.assert_allclose(merged["moments"].mean, x.mean(0), rtol=1e-14)
np.testing.assert_allclose(merged["moments"].variance(), x.var(0), rtol=1e-13)
try:
    merge_across_processes(state if jax.process_index() == 0 else None)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes_see_the_same_result_in_double_precision() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == 0, errors
        assert "there is no sequence to analyze on process 1" in output


def test_checkpoints_of_a_run_are_measured_by_one_program(
    model_and_params: tuple[Decoder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of the same shapes, in a model made anew; the numbers are those of the parameters."""
    model, params = model_and_params
    again = Decoder(dataclasses.replace(model.config), model.vocab_size, model.dtype)
    # Called where the program is traced. No other test has batches of 7 sequences.
    traced = mock.Mock(wraps=capture)
    monkeypatch.setattr("nfllm.measure.analyze.capture", traced)
    whole = analyze(model, params, [SEQUENCES[:7]], ["head_entropy"])["head_entropy"].mean
    halves = jax.tree.map(lambda x: x / 2, params)
    found = analyze(again, halves, [SEQUENCES[:7]], ["head_entropy"])["head_entropy"].mean
    assert traced.call_count == 1
    assert np.abs(found - whole).max() > 0.01


def test_unknown_metrics_are_named(model_and_params: tuple[Decoder, Any]) -> None:
    for wrong in ([], "head_entropy"):
        with pytest.raises(ValueError, match=r"metrics=.* must be a list of names, of "):
            find_metrics(wrong)
    with pytest.raises(ValueError, match="unknown metric 'head_entropie'; did you mean 'head_entr"):
        analyze(*model_and_params, [SEQUENCES], ["head_entropie"])


def test_no_sequence_is_an_error(model_and_params: tuple[Decoder, Any]) -> None:
    with pytest.raises(ValueError, match="there is no sequence to analyze: batches is empty"):
        analyze(*model_and_params, [], ["head_entropy"])


def test_lengths_that_a_metric_cannot_merge_are_named(
    model_and_params: tuple[Decoder, Any],
) -> None:
    batches = [random_batch(0).tokens, random_batch(0).tokens[:, :5]]
    both = analyze(*model_and_params, batches, ["head_entropy"])["head_entropy"]
    assert (both.size == sum(len(batch) for batch in batches)).all()
    with pytest.raises(ValueError, match=r"'query_entropy' cannot merge .* here 5, .* one length"):
        analyze(*model_and_params, batches, ["query_entropy"])


def test_without_a_repeated_token_there_is_no_induction_score(
    model_and_params: tuple[Decoder, Any],
) -> None:
    found = analyze(*model_and_params, np.array([[1, 2, 3], [4, 5, 6]]), ["induction_score"])
    score = found["induction_score"]
    assert not score.size.any()
    assert np.isnan([score.mean, score.minimum, score.maximum]).all()


def test_one_batch_is_one_batch(model_and_params: tuple[Decoder, Any]) -> None:
    batch = Batch(SEQUENCES, SEQUENCES)
    for alone in (batch, SEQUENCES):
        found = analyze(*model_and_params, alone, ["head_entropy"])["head_entropy"]
        expected = analyze(*model_and_params, [SEQUENCES], ["head_entropy"])["head_entropy"]
        np.testing.assert_array_equal(found.size, expected.size)
        np.testing.assert_array_equal(found.mean, expected.mean)
    with pytest.raises(ValueError, match=r"token ids are \[B, T\]"):
        analyze(*model_and_params, SEQUENCES[0], ["head_entropy"])
    with pytest.raises(
        ValueError, match=r"token ids are \[B, T\], not \[\d+\]; give tokens\[None\]"
    ):
        capture(*model_and_params, SEQUENCES[0])


@pytest.mark.parametrize("mlp", ["fused", "none"])
def test_what_a_model_without_hidden_layers_has(mlp: str, caplog: pytest.LogCaptureFixture) -> None:
    model, params = random_model(0.3, mlp=mlp, activation="identity")
    found = analyze(model, params, [SEQUENCES])
    assert "head_entropy" in found
    assert not {"linear_fit", "unit_activity"} & found.keys()
    assert (
        f"model.mlp='{mlp}' has no hidden layer: linear_fit, unit_activity are left" in caplog.text
    )
    with pytest.raises(
        ValueError, match=f"'spectra' is about the hidden .* model.mlp='{mlp}' does"
    ):
        analyze(model, params, [SEQUENCES], ["spectra"])


def test_what_no_metric_reads_is_not_computed(model_and_params: tuple[Decoder, Any]) -> None:
    """A metric of the residual stream alone compiles to a program without attention entropies."""
    from nfllm.measure.metrics import Observed

    model, params = model_and_params

    def lowered(name: str) -> str:
        metric = METRICS[name]

        def measure(params: Any, tokens: jax.Array) -> Any:
            return metric.of(Observed(capture(model, params, tokens), tokens))

        return jax.jit(measure).lower(params, SEQUENCES).compile().as_text()

    assert "log(" in lowered("head_entropy")
    assert "log(" not in lowered("residual_norm")


def test_a_ratio_that_a_model_does_not_have_is_refused() -> None:
    model, params = random_model(0.3, normalization="layernorm", norm_placement="post")
    with pytest.raises(ValueError, match=r"'mlp_ratio' needs .* model.norm_placement='post'"):
        analyze(model, params, [SEQUENCES], ["mlp_ratio"])
    model, params = random_model(0.3, attention_skip=0.5)
    with pytest.raises(ValueError, match=r"'attention_ratio' needs .* model.attention_skip=0\.5"):
        analyze(model, params, [SEQUENCES], ["attention_ratio"])
