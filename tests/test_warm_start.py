"""A run that starts from the weights of another: what is taken, what is refused, and its record."""

import dataclasses
import operator
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from scipy.interpolate import interp1d
from tiny import make_corpus, tiny_config
from trainer import Trainer
from training_parts import make_parts, random_batch, small_config

from nfllm.config import Config, ConfigError
from nfllm.data.tokenizer import bytes_tokenizer
from nfllm.model.parameters import name_of
from nfllm.report import write_report
from nfllm.rundir import RunError, read_record
from nfllm.rundir.metrics import read_metrics
from nfllm.trainer.checkpoints import Checkpoints, restore_params
from nfllm.trainer.fitting import fit_parameters, resize_positions
from nfllm.trainer.loop import fit
from nfllm.trainer.program import Program
from nfllm.trainer.record import write_run
from nfllm.trainer.warm_start import (
    _same_tokenizer,
    first_state,
    split_source,
    with_params,
)
from nfllm.training.kernel_starts import following_kernels, start_from_kernels

pytestmark = pytest.mark.slow

SHAPES = {
    "token_embedding": (7, 4),
    "position_embedding": (6, 4),
    "blocks.mlp.in_kernel": (3, 4, 8),
    "blocks.attention_norm.scale": (3, 4),
}


def values(shapes=None):
    generator = np.random.default_rng(0)
    shapes = SHAPES if shapes is None else shapes
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fitted(shapes, skip=(), source=None, **options):
    return fit_parameters(source or values(), shapes, skip, source="runs/a", **options)


def test_equal_models_share_everything():
    source = values()
    found = fitted(SHAPES, source=source)
    assert found.notes == ()
    assert found.values.keys() == SHAPES.keys()
    for name, value in found.values.items():
        np.testing.assert_array_equal(value, source[name])


def test_all_that_does_not_fit_is_in_one_error():
    ours = {**SHAPES, "blocks.mlp.in_bias": (3, 8), "blocks.mlp.in_kernel": (3, 4, 16)}
    del ours["blocks.attention_norm.scale"]
    with pytest.raises(ConfigError) as error:
        fitted(ours)
    text = str(error.value)
    assert "new here: blocks.mlp.in_bias" in text
    assert "only there: blocks.attention_norm.scale" in text
    assert "of another shape: blocks.mlp.in_kernel [3, 4, 8] there, [3, 4, 16] here" in text
    assert (
        "training.init_skip=blocks.mlp.in_bias,blocks.attention_norm.scale,blocks.mlp.in_kernel "
        in text
    )


def test_what_is_named_starts_anew_or_is_left_out():
    ours = {**SHAPES, "blocks.mlp.in_bias": (3, 8), "blocks.mlp.in_kernel": (3, 4, 16)}
    del ours["blocks.attention_norm.scale"]
    found = fitted(ours, ("blocks.mlp", "blocks.attention_norm"))
    assert found.values.keys() == {"token_embedding", "position_embedding"}
    (note,) = found.notes
    assert note.startswith("not copied: blocks.attention_norm.scale, blocks.mlp.in_bias")


@pytest.mark.parametrize(("here", "fate"), [(2, "2 to 2 are left out"), (5, "3 to 4 are new")])
def test_another_number_of_layers(here, fate):
    ours = {n: (here, *s[1:]) if n.startswith("blocks") else s for n, s in SHAPES.items()}
    with pytest.raises(ConfigError, match=f"layers: 3 there, {here} here"):
        fitted(ours)
    source = values()
    found = fitted(ours, ("layers",), source=source)
    assert found.notes == (f"layers {fate}",)
    kernel = found.values["blocks.mlp.in_kernel"]
    np.testing.assert_array_equal(kernel, source["blocks.mlp.in_kernel"][: min(3, here)])


def test_a_name_that_is_nobodys():
    with pytest.raises(ConfigError, match=r"'blocks.mpl'.*did you mean 'blocks.mlp.in_kernel'"):
        fitted(SHAPES, ("blocks.mpl",))


def test_another_vocabulary_is_refused_but_for_padding():
    ours = {**SHAPES, "token_embedding": (5, 4)}
    with pytest.raises(ConfigError, match=r"token_embedding \[7, 4\] there, \[5, 4\] here"):
        fitted(ours)
    found = fitted(ours, cut_tables=True)
    assert found.values["token_embedding"].shape == (5, 4)
    assert found.notes == ("token_embedding: 2 padding rows are left out",)
    assert "token_embedding" not in fitted(ours, ("token_embedding",)).values
    with pytest.raises(ConfigError, match=r"token_embedding \[7, 4\] there, \[8, 4\] here"):
        fitted({**SHAPES, "token_embedding": (8, 4)}, cut_tables=True)


def test_parameters_of_the_objective_are_each_runs_own():
    source = {**values(), "objective.entropy_threshold": np.ones((3, 2))}
    assert "objective.entropy_threshold" not in fitted(SHAPES, source=source).values


@pytest.mark.parametrize(("there", "here"), [(6, 4), (6, 11), (6, 6), (1, 3), (5, 9)])
def test_positions(there, here):
    table = np.random.default_rng(0).normal(size=(there, 3)).astype(np.float32)
    found, note = resize_positions(table, here)
    assert found.dtype == np.float32
    if here <= there:
        np.testing.assert_array_equal(found, table[:here])
        assert note == f"positions: cut from {there} to {here}"
        return
    assert note == f"positions: interpolated from {there} to {here}"
    if there == 1:
        np.testing.assert_array_equal(found, np.repeat(table, here, axis=0))
        return
    expected = interp1d(np.linspace(0, 1, there), table, axis=0)(np.linspace(0, 1, here))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"), [("runs/a", None), ("runs/a@12", 12), ("runs/a@b", None)]
)
def test_sources(text, expected):
    path, step = split_source(text)
    assert step == expected
    assert str(path).endswith("a@b" if "@b" in text else "a")


def test_a_directory_of_the_whole_name_is_the_source(tmp_path):
    (tmp_path / "a@12").mkdir()
    assert split_source(f"{tmp_path}/a@12") == (epath.Path(tmp_path / "a@12"), None)
    assert split_source(f"{tmp_path}/a@12@3") == (epath.Path(tmp_path / "a@12"), 3)


def test_a_source_that_does_not_exist_is_named_before_data_is_prepared(tmp_path):
    corpus = make_corpus(tmp_path / "corpus"), tmp_path / "data"
    with pytest.raises(RunError, match="nowhere does not exist"):
        fit(config(corpus, training__init_from=f"{tmp_path}/nowhere"), tmp_path / "run")
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("warm")
    return make_corpus(folder / "corpus"), folder / "data"


def config(corpus, **changes) -> Config:
    return tiny_config(*corpus, **{"training__steps": 2, **changes})


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory) -> Path:
    """A LayerNorm GELU model, untrained, as a checkpoint of step 2."""
    path = epath.Path(tmp_path_factory.mktemp("source") / "run")
    path.mkdir()
    of = config(corpus, model__normalization="layernorm", model__activation="gelu")
    program = Program(of)
    state = program.init_state()
    write_run(path, program, state.params)
    with Checkpoints(path, of.checkpoint) as checkpoints:
        saved = program.placement.to_checkpoint(state.replace(step=state.step + 2))
        checkpoints.save(saved, program.dataset.fingerprint)
    return Path(path)


ANOTHER_MODEL = {
    "training__init_skip": "blocks.attention_norm,blocks.mlp_norm,layers",
    "model__context_length": 40,
    "model__num_layers": 3,
}


@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_norm_free_from_layernorm(strategy, corpus, source):
    """What is taken is bit for bit that of the source, however it is placed."""
    changes = {"training__init_from": f"{source}@2", "parallel__strategy": strategy}
    program = Program(config(corpus, **ANOTHER_MODEL, **changes))
    state, origin = first_state(program)
    plain = program.init_state()
    _, theirs = restore_params(source)
    for name in ("attention", "mlp"):
        jax.tree.map(
            lambda new, old, first: np.testing.assert_array_equal(
                new, np.concatenate([old, first[2:]])
            ),
            state.params["blocks"][name],
            theirs["blocks"][name],
            plain.params["blocks"][name],
        )
    np.testing.assert_array_equal(state.params["token_embedding"], theirs["token_embedding"])
    np.testing.assert_array_equal(
        state.params["position_embedding"],
        resize_positions(theirs["position_embedding"], 40)[0],
    )
    shardings = (jax.tree.map(lambda x: x.sharding, s.params) for s in (state, plain))
    assert operator.eq(*shardings)
    assert (origin.path, origin.step, len(origin.fingerprint)) == (str(source), 2, 64)
    assert "model.activation: 'gelu' there, 'relu' here" in origin.notes
    assert "positions: interpolated from 32 to 40" in origin.notes
    assert "layers 2 to 2 are new" in origin.notes


@pytest.mark.slow
def test_resume_is_exact_and_reads_the_source_once(corpus, source, tmp_path):
    moved = tmp_path / "moved"
    changes = {
        "training__init_from": str(moved),
        "optimizer__schedule": "constant",
        "optimizer__warmup_steps": 0,
        **ANOTHER_MODEL,
    }
    source.rename(moved)
    try:
        fit(config(corpus, training__steps=4, **changes), tmp_path / "whole")
        fit(config(corpus, training__steps=2, **changes), tmp_path / "parts")
    finally:
        moved.rename(source)
    fit(config(corpus, training__steps=4, **changes), tmp_path / "parts")
    one, two = (restore_params(tmp_path / name, 4)[1] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    whole, parts = (read_record(tmp_path / name).origin for name in ("whole", "parts"))
    assert whole == parts
    started = read_metrics(tmp_path / "parts").rows["event"][0]
    assert f"weights of {moved} at step 2" in started["message"]
    assert "positions: interpolated from 32 to 40" in started["message"]
    page = Path(write_report([tmp_path / "parts"], tmp_path / "report")).read_text()
    assert f"Started from weights of {moved} at step 2" in page


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_two_processes_start_and_lose_norms_as_one(strategy, source, tmp_path, compilation_cache):
    """Two of two devices against one of four, from the same weights and through all removals."""
    make_corpus(tmp_path / "corpus")
    trainer = Trainer(tmp_path, compilation_cache)
    changes = {
        "training__init_from": str(source),
        "model__normalization": "frozen_layernorm",
        "model__final_normalization": "frozen_layernorm",
        "model__activation": "gelu",
        "removal__start": 2,
        "removal__gap": 1,
        "removal__scale_weight": 0.1,
        "training__steps": 12,
        "telemetry__every": 6,
        "parallel__strategy": strategy,
    }
    code, _, err = trainer.run(tmp_path / "one", parallel__cpu_devices=4, **changes)
    assert code == 0, err
    pair = trainer.run_pair(tmp_path / "two", **changes)
    assert [code for code, _, _ in pair] == [0, 0], pair
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for kind, field in (
        ("train", "loss_nats"),
        ("train", "scale_spread"),
        ("eval", "eval_loss_nats"),
    ):
        found, wanted = two.series(kind, field), one.series(kind, field)
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, err_msg=field)
    removed = [
        [(row["step"], row["site"]) for row in metrics.rows["event"] if row["event"] == "removed"]
        for metrics in (one, two)
    ]
    assert removed[0] == removed[1]
    assert len(removed[0]) == 7
    assert read_record(tmp_path / "two").origin == read_record(tmp_path / "one").origin


def test_only_a_run_with_an_optimizer_is_gone_on_with(corpus, source, tmp_path):
    program = Program(config(corpus))
    state = program.init_state()
    with Checkpoints(tmp_path, program.config.checkpoint) as checkpoints:
        checkpoints.save(state.replace(opt_state=()).without_guard(), "data")
        with pytest.raises(RunError, match=r"has no optimizer.*training.init_from=.*"):
            checkpoints.restore(program.abstract_state(), "data")


def test_bad_sources(corpus, source, tmp_path):
    with pytest.raises(RunError, match="has no checkpoint of step 7; it holds 2"):
        fit(config(corpus, training__init_from=f"{source}@7"), tmp_path / "a")
    with pytest.raises(RunError, match="does not exist"):
        fit(config(corpus, training__init_from=str(tmp_path / "none")), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"only there: blocks.attention_norm.bias"):
        fit(config(corpus, training__init_from=str(source)), tmp_path / "c")
    with pytest.raises(
        ConfigError, match=r"init_skip='a' has no effect without training.init_from"
    ):
        config(corpus, training__init_skip="a")


def test_another_tokenizer(corpus, source, tmp_path):
    bpe = config(
        corpus,
        data__tokenizer="bpe",
        data__vocab_size=270,
        model__normalization="layernorm",
        training__init_from=str(source),
    )
    with pytest.raises(ConfigError, match=r"another tokenizer.*data.tokenizer=.*tokenizer.json"):
        fit(bpe, tmp_path / "a")
    named = dataclasses.replace(bpe.training, init_skip="token_embedding")
    _, origin = first_state(Program(dataclasses.replace(bpe, training=named)))
    assert "not copied: token_embedding" in origin.notes


def test_every_table_of_another_tokenizer_must_be_named(tmp_path):
    theirs, ours = bytes_tokenizer(), bytes_tokenizer()
    theirs.save(tmp_path / "tokenizer.json")
    other = types.SimpleNamespace(fingerprint="another")
    assert _same_tokenizer(tmp_path, ours, {"head_embedding"})
    assert not _same_tokenizer(tmp_path, other, set())
    with pytest.raises(
        ConfigError, match=r"or add head_bias, head_embedding to training.init_skip"
    ):
        _same_tokenizer(tmp_path, other, {"head_embedding", "head_bias"})


@pytest.mark.parametrize("method", ["weight_input", "weight_output", "spectral"])
def test_gains_and_directions_follow_the_copied_kernels(method):
    """With the gains of weight norm the model is that of the source, whatever its own start was."""
    plain = make_parts(small_config())
    source = jax.device_get(jax.jit(plain.init)(jax.random.key(7)).params)
    source["blocks"]["mlp"]["in_kernel"] = 3 * source["blocks"]["mlp"]["in_kernel"]
    parts = make_parts(small_config(model={"mlp_weight_norm": method}))
    state = jax.jit(parts.init)(jax.random.key(0))
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    copied = {name_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(source)}
    follows = following_kernels(names, copied)
    part = "direction" if method == "spectral" else "gain"
    assert follows == {f"blocks.mlp.{matrix}_{part}" for matrix in ("in", "out")}
    copied_params = with_params(state, copied).params
    params = start_from_kernels(parts.model, copied_params, follows)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(copied_params), jax.tree.leaves(params), strict=True
    ):
        assert (name_of(path) in follows) or np.array_equal(old, new)
    tokens = random_batch(0).tokens
    found, kernel = parts.model.apply({"params": params}, tokens), source["blocks"]["mlp"]
    if method == "spectral":  # of power iteration on the copied kernels, within a few percent
        u_LI = params["blocks"]["mlp"]["in_direction"]
        size = np.linalg.norm(np.einsum("lio,li->lo", kernel["in_kernel"], u_LI), axis=-1)
        largest = np.linalg.svd(kernel["in_kernel"], compute_uv=False)[:, 0]
        np.testing.assert_allclose(size, largest, rtol=0.05)
    else:
        expected = plain.model.apply({"params": source}, tokens)
        np.testing.assert_allclose(found, expected, atol=1e-6)
