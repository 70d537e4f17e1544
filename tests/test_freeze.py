"""Norms frozen after training, and folded: against NumPy in float64 and what is captured."""

import dataclasses
import json
import re
from pathlib import Path

import float64_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from random_model import random_model
from tiny import make_corpus, tiny_config
from training_parts import VOCAB_SIZE, small_config

import nfllm
from nfllm.config import Config
from nfllm.config.names import FROZEN
from nfllm.convert.fold import fold_params
from nfllm.data.batches import Batch
from nfllm.freeze import main
from nfllm.measure.freeze import freeze_norms, with_gates
from nfllm.model.norm_sites import at_places, frozen_places, map_norms
from nfllm.report import write_report
from nfllm.run import Run
from nfllm.rundir import RunError
from nfllm.rundir.metrics import Metrics
from nfllm.trainer.checkpoints import Checkpoints
from nfllm.trainer.loop import fit
from nfllm.trainer.program import Program
from nfllm.trainer.record import write_run
from nfllm.trainer.warm_start import first_state

LAYERNORM = {"normalization": "layernorm", "final_normalization": "layernorm"}
TOKENS_BT = np.random.default_rng(0).integers(0, VOCAB_SIZE, (6, 12)).astype(np.int32)
BATCHES = [Batch(TOKENS_BT[:4], TOKENS_BT[:4]), Batch(TOKENS_BT[4:], TOKENS_BT[4:])]
PLACES = [("mlp", 0), ("mlp", 1), ("query_key", 0), ("query_key", 1), ("value", 0), ("value", 1)]


def run_of(**model) -> Run:
    decoder, params = random_model(0.3, **{"activation": "gelu", **LAYERNORM, **model})
    config = dataclasses.replace(small_config(), model=decoder.config)
    return Run(epath.Path("runs/x"), 3, decoder, params, config, Metrics({}, []))


def nats(config, params, tokens_BT):
    """Mean loss in float64."""
    logits = float64_model.logits(config, params, tokens_BT)[:, :-1]
    logits = logits - logits.max(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, tokens_BT[:, 1:, None], -1).mean()


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of()


@pytest.fixture(scope="module")
def frozen(run):
    return freeze_norms(run, BATCHES)


def deviations(run):
    """Of the stream at every norm, [L, B, T] and [B, T], from what is captured."""
    captured = jax.tree.map(np.asarray, nfllm.capture(run.model, run.params, TOKENS_BT))
    streams = captured.residual[:-1], captured.residual[:-1] + captured.attention_out
    return [np.sqrt(x.var(-1) + 1e-5) for x in (*streams, captured.residual[-1])]


@pytest.mark.slow
def test_what_is_measured_is_the_mean_deviation_of_the_stream(run, frozen):
    attention, mlp, final = (np.mean(x, axis=(-1, -2)) for x in deviations(run))
    blocks = frozen.run.params["blocks"]
    expected = np.stack([attention, attention], axis=1)
    np.testing.assert_allclose(blocks["attention_norm"]["sigma"], expected, rtol=1e-5)
    np.testing.assert_allclose(blocks["mlp_norm"]["sigma"], mlp[:, None], rtol=1e-5)
    np.testing.assert_allclose(frozen.run.params["final_norm"]["sigma"], [final], rtol=1e-5)


@pytest.mark.slow
def test_a_deviation_of_the_first_position(run):
    found = freeze_norms(run, BATCHES, first_position=True, with_losses=False)
    _, mlp, final = deviations(run)
    means = [np.stack([x[..., 0].mean(-1), x[..., 1:].mean((-1, -2))], -1) for x in (mlp, final)]
    params = found.run.params
    np.testing.assert_allclose(params["blocks"]["mlp_norm"]["sigma"][:, 0], means[0], rtol=1e-5)
    np.testing.assert_allclose(params["final_norm"]["sigma"][0], means[1], rtol=1e-5)
    assert found.loss_nats is None
    logits = found.run.model.apply({"params": params}, TOKENS_BT)
    expected = float64_model.logits(found.run.model.config, params, TOKENS_BT)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_losses_with_each_norm_alone_frozen(run, frozen):
    """Each is that of the formula in float64, with one gate closed."""
    assert frozen.num_windows == 6
    assert frozen.loss_nats == pytest.approx(
        nats(run.model.config, run.params, TOKENS_BT), rel=1e-5
    )
    config, closed = frozen.run.model.config, frozen.run.params
    assert frozen.frozen_loss_nats == pytest.approx(nats(config, closed, TOKENS_BT), rel=1e-5)
    assert list(frozen.each) == [*PLACES, ("final", None)] == frozen_places(config)
    for place, loss in frozen.each.items():
        gates = at_places(config, {place: 0.0}, 1.0)
        alone = map_norms(lambda norm, gate: {**norm, "norm_gate": gate}, closed, gates)
        assert loss == pytest.approx(nats(config, alone, TOKENS_BT), rel=1e-5), place
    assert len({round(loss, 6) for loss in frozen.each.values()}) == len(frozen.each)


@pytest.mark.slow
def test_windows_without_a_label_are_passed_over(run, frozen):
    padded = Batch(
        np.concatenate([TOKENS_BT, 0 * TOKENS_BT[:2]]),
        np.concatenate([TOKENS_BT, 0 * TOKENS_BT[:2] - 100]),
    )
    found = freeze_norms(run, [padded], with_losses=False)
    one, two = (x.run.params["final_norm"]["sigma"] for x in (found, frozen))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    with pytest.raises(ValueError, match="no window has a label"):
        freeze_norms(run, [Batch(TOKENS_BT, 0 * TOKENS_BT - 100)])


@pytest.mark.slow
@pytest.mark.slow
def test_ids_outside_the_table(run):
    for bad in (-5, VOCAB_SIZE):
        tokens = np.where(TOKENS_BT[0, 0] == TOKENS_BT, bad, TOKENS_BT)
        with pytest.raises(ValueError, match=f"token id {bad} at"):
            freeze_norms(run, [Batch(tokens, TOKENS_BT)], with_losses=False)


@pytest.mark.slow
def test_directions_of_spectral_norms_stay():
    run = run_of(weight_reparametrization="sigma")
    frozen = freeze_norms(run, BATCHES, with_losses=False).run.params

    def directions(tree):
        found = jax.tree_util.tree_leaves_with_path(tree)
        return {str(path): np.asarray(x) for path, x in found if "direction" in str(path)}

    expected = directions(run.params)
    assert expected
    jax.tree.map(np.testing.assert_array_equal, directions(frozen), expected)


def test_gates_that_are_open_change_nothing(run):
    model, params = with_gates(run.model, run.params)
    found = model.apply({"params": params}, TOKENS_BT)
    expected = run.model.apply({"params": run.params}, TOKENS_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_what_a_schedule_has_frozen_stays(frozen):
    """Freezing a frozen run again measures nothing."""
    again = freeze_norms(frozen.run, BATCHES[:1], with_losses=False)
    jax.tree.map(np.testing.assert_array_equal, again.run.params, frozen.run.params)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["post", "output"])
def test_the_last_norm_alone_is_frozen_where_blocks_have_theirs_elsewhere(placement):
    frozen = freeze_norms(run_of(norm_placement=placement), BATCHES)
    config = frozen.run.config.model
    assert (config.normalization, config.final_normalization) == ("layernorm", FROZEN)
    assert list(frozen.each) == [("final", None)]
    assert frozen.each["final", None] == frozen.frozen_loss_nats != frozen.loss_nats


@pytest.mark.slow
def test_a_model_without_layernorm_is_refused():
    run = run_of(normalization="none", final_normalization="rmsnorm")
    with pytest.raises(
        ValueError, match=r"no LayerNorm to freeze \(attention: none, mlp: none, final: rmsnorm"
    ):
        freeze_norms(run, BATCHES)


FOLDED = [
    {},
    {"attention_bias": "qk", "tie_embeddings": False},
    {"attention_bias": "all", "mlp_bias": True, "activation": "relu"},
    {"final_normalization": "none"},
    {"normalization": "none", "head_bias": True},
    {"attention_normalization": "none", "attention_bias": "qk"},
    {"mlp_normalization": "none"},
]


@pytest.mark.parametrize("changes", FOLDED, ids=str)
def test_folding_is_exact_in_float64(changes):
    """1e-12 of the largest logit; with deviations of their own for queries, keys and values."""
    run, rng = run_of(**changes), np.random.default_rng(1)
    model, params = with_gates(run.model, run.params)

    def closed(norm, gate):
        sigma = rng.uniform(0.5, 2, gate.shape).astype(np.float32)
        return {**norm, "norm_gate": gate, "sigma": sigma}

    params = map_norms(closed, params, at_places(model.config, {}, np.float32(0)))
    config, folded = fold_params(model.config, params)
    assert (config.normalization, config.final_normalization) == ("none", "none")
    found = float64_model.logits(config, folded, TOKENS_BT)
    expected = float64_model.logits(model.config, params, TOKENS_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("biased", [False, True])
def test_a_norm_before_a_gate_and_grouped_heads_folds_into_all_that_read_it(biased):
    options = {"attention_bias": "all", "mlp_bias": True} if biased else {}
    run = run_of(architecture="llama", mlp="gated", num_kv_heads=1, **options)
    frozen = freeze_norms(run, BATCHES, with_losses=False).run
    norm = frozen.params["blocks"]["attention_norm"]
    norm["sigma"] = np.asarray([[0.5, 2.0], [0.7, 1.1]], np.float32)
    folded = nfllm.fold(frozen)
    shapes = jax.eval_shape(folded.model.init, jax.random.key(0), TOKENS_BT)["params"]
    assert jax.tree.map(np.shape, folded.params) == jax.tree.map(lambda x: x.shape, shapes)
    one, two = (run.model.apply({"params": run.params}, TOKENS_BT) for run in (frozen, folded))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_folded_run_computes_the_same(architecture):
    frozen = freeze_norms(
        run_of(architecture=architecture, mlp_pruned_layers=1), BATCHES, with_losses=False
    ).run
    folded = nfllm.fold(frozen)
    shapes = jax.eval_shape(folded.model.init, jax.random.key(0), TOKENS_BT)["params"]
    assert jax.tree.map(np.shape, folded.params) == jax.tree.map(lambda x: x.shape, shapes)
    one, two = (run.model.apply({"params": run.params}, TOKENS_BT) for run in (frozen, folded))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())
    assert Config.from_dict(folded.config.to_dict()) == folded.config


@pytest.mark.slow
def test_what_cannot_be_folded(run, frozen):
    with pytest.raises(ValueError, match=r"no frozen norm to fold.*nfllm.freeze_norms"):
        nfllm.fold(run)
    model, params = with_gates(run.model, run.params)
    with pytest.raises(ValueError, match=r"attention_norm is not removed \(gates \[1.0\]\)"):
        fold_params(model.config, params)
    own = freeze_norms(run, BATCHES, first_position=True, with_losses=False).run
    with pytest.raises(ValueError, match="another deviation for the first position"):
        nfllm.fold(own)
    for changes in (
        {"mlp_weight_norm": "spectral"},
        {"weight_reparametrization": "sigma"},
    ):
        other = freeze_norms(run_of(**changes), BATCHES, with_losses=False).run
        ((key, value),) = changes.items()
        with pytest.raises(ValueError, match=f"cannot be folded with model.{key}={value!r}"):
            nfllm.fold(other)
    fused = run_of(mlp="fused", activation="identity")
    with pytest.raises(ValueError, match=r"model.mlp='fused' has no bias"):
        nfllm.fold(freeze_norms(fused, BATCHES, with_losses=False).run)


@pytest.mark.slow
def test_generation_knows_where_the_first_position_is(run):
    """A prompt with a cache gives the logits of the whole sequence."""
    from nfllm.model.cache import CACHE, empty_cache, move

    own = freeze_norms(run, BATCHES, first_position=True, with_losses=False).run
    whole = own.model.apply({"params": own.params}, TOKENS_BT)
    cache, found = empty_cache(own.model.config, len(TOKENS_BT)), []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        variables = {"params": own.params, CACHE: cache}
        logits, new = own.model.apply(variables, TOKENS_BT[:, start:stop], mutable=[CACHE])
        cache = move(new[CACHE], jnp.full(len(TOKENS_BT), stop))
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Config]:
    """A run directory of a LayerNorm model, untrained."""
    folder = tmp_path_factory.mktemp("freeze")
    corpus = make_corpus(folder / "corpus")
    config = tiny_config(corpus, folder / "data", model__normalization="layernorm")
    program, path = Program(config), epath.Path(folder / "run")
    path.mkdir()
    state = program.init_state()
    write_run(path, program, state.params)
    with Checkpoints(path, config.checkpoint) as checkpoints:
        checkpoints.save(program.placement.to_checkpoint(state), program.dataset.fingerprint)
    return Path(path), config


@pytest.mark.slow
def test_the_command(trained, tmp_path, capsys):
    path, config = trained
    assert main([str(path), str(tmp_path / "frozen"), "--max_windows", "6"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  query_key 1    \d\.\d{4}  [+-]0\.\d{4}$", out, re.MULTILINE)
    run = nfllm.load_run(tmp_path / "frozen")
    assert run.config.model.normalization == "frozen_layernorm"
    assert run.tokenizer.fingerprint == nfllm.load_run(path).tokenizer.fingerprint
    (event,) = run.metrics.rows["event"]
    assert (event["event"], len(event["each"]), event["num_windows"]) == ("frozen", 7, 6)
    page = Path(write_report([tmp_path / "frozen"], tmp_path / "report")).read_text()
    assert "What each norm is worth" in page
    assert "unfinished" not in page
    assert f"weights of {path} at step 0" in page

    split = ["--split", "train", "--max_windows", "4", "--fold"]
    assert main([str(path), str(tmp_path / "folded"), *split]) == 0
    folded = nfllm.load_run(tmp_path / "folded")
    assert folded.config.model.final_normalization == "none"
    tokens = np.arange(20)[None]
    assert np.isfinite(nfllm.capture(folded.model, folded.params, tokens).logits).all()

    capsys.readouterr()
    assert main([str(path), str(tmp_path / "folded")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"of another config|has no optimizer"):
        fit(dataclasses.replace(folded.config, data=config.data), tmp_path / "folded")
    assert json.loads((tmp_path / "folded" / "config.json").read_text())["origin"]["step"] == 0


@pytest.mark.slow
def test_training_starts_from_a_frozen_run(trained, tmp_path):
    path, config = trained
    main([str(path), str(tmp_path / "frozen"), "--max_windows", "4"])
    model = nfllm.load_run(tmp_path / "frozen").config.model
    training = dataclasses.replace(config.training, init_from=str(tmp_path / "frozen"))
    state, _ = first_state(Program(dataclasses.replace(config, model=model, training=training)))
    theirs = nfllm.load_run(tmp_path / "frozen").params
    jax.tree.map(np.testing.assert_array_equal, state.params, theirs)
    assert np.all(np.asarray(state.params["final_norm"]["sigma"]) > 0)
