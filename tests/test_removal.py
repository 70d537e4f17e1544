"""Norms that are removed while training goes on: the schedule, the statistics, and resuming."""

import dataclasses
import functools
import json
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import make_corpus, tiny_config
from training_parts import make_parts, random_batch, small_config

from configs import remove_norms
from nfllm.config import ConfigError, ModelConfig, RemovalConfig, differences
from nfllm.config.removal import model_at_end, removals
from nfllm.data import batches
from nfllm.experiment.grid import expand
from nfllm.model.frozen_norm import FrozenLayerNorm
from nfllm.private_cost.cost import private_cost
from nfllm.private_cost.shape import DecoderShape
from nfllm.report import figures, write_report
from nfllm.report.charts import curves_chart, layers_chart
from nfllm.report.figures import Curve, LayerCurves
from nfllm.report.page import Pictures, Section
from nfllm.report.removal_sections import mark_removals, removal_sections
from nfllm.report.runs import ReportedRun
from nfllm.rundir.metrics import Metrics, read_metrics
from nfllm.trainer.checkpoints import restore_params
from nfllm.trainer.loop import fit
from nfllm.trainer.non_finite import NonFiniteError
from nfllm.trainer.removals import Removals, last_removal
from nfllm.training.auxiliary import scale_spread
from nfllm.training.guard import leave_out_step
from nfllm.training.removal import gate_of, make_gating

FROZEN = {"normalization": "frozen_layernorm", "final_normalization": "frozen_layernorm"}
BRANCHES_WITHOUT = {
    "normalization": "frozen_layernorm",
    "attention_normalization": "none",
    "mlp_normalization": "none",
}
X = np.asarray([[[1.0, 3.0, 5.0, 7.0]]], np.float32)


def config_of(model, removal=None, **training):
    """The config of `small_config` with these values, of which none is checked without the rest."""
    plain = small_config()
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, **model),
        removal=RemovalConfig(**(removal or {})),
        training=dataclasses.replace(plain.training, **training),
    )


def norm(x, gate, sigma, path=0, **options):
    module = FrozenLayerNorm(epsilon=1e-30, dtype=jnp.float32, **options)
    ones = np.ones(x.shape[-1], np.float32)
    params = {
        "scale": ones,
        "bias": 0 * ones,
        "norm_gate": np.float32(gate),
        "sigma": np.float32(sigma),
    }
    y, found = applied(module, path, params, x)
    return np.asarray(y), found["updates"]["sigma"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def applied(module, path, params, x):
    return module.apply({"params": params}, x, path, mutable=["updates"])


def test_no_gradient_reaches_what_is_measured():
    """Between gates 0 and 1, where the output depends on both."""
    module = FrozenLayerNorm(epsilon=1e-30, dtype=jnp.float32)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    params |= {"norm_gate": jnp.full(1, 0.5), "sigma": jnp.full(1, 2.0)}

    @jax.jit
    @jax.grad
    def slopes(params):
        return jnp.sum(module.apply({"params": params}, jnp.asarray(X)) ** 2)

    found = slopes(params)
    assert not found["norm_gate"].any()
    assert not found["sigma"].any()
    assert np.all(found["scale"] > 0)


def test_epsilon_is_added_to_the_variance():
    """Of variance 5: sqrt(5 + 4) is 3."""
    module = FrozenLayerNorm(epsilon=4.0, dtype=jnp.float32)
    params = {
        "scale": np.ones(4),
        "bias": np.zeros(4),
        "norm_gate": np.ones(1),
        "sigma": X[0, 0, :1],
    }
    y, _ = applied(module, 0, params, X)
    np.testing.assert_allclose(y[0, 0], [-1, -1 / 3, 1 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("gate", "sigma", "expected"),
    [
        (1.0, 2.0, (-1.3416394449, -0.4472131483, 0.4472131483, 1.3416394449)),
        (0.0, 2.0, (-1.5, -0.5, 0.5, 1.5)),
        (0.5, 2.0, (-1.42082, -0.4736066, 0.4736066, 1.42082)),
        (0.0, 0.0, (-3.0, -1.0, 1.0, 3.0)),  # not measured
    ],
)
def test_vectors(gate, sigma, expected):
    """LayerNorm, FakeLN with sigma 2, and half of each (METHODS A3)."""
    y, _ = norm(X, [gate], [sigma])
    np.testing.assert_allclose(y[0, 0], expected, rtol=2e-6)


def test_a_row_divided_by_its_own_deviation_is_layernorm():
    x = np.random.default_rng(0).normal(2, 3, (1, 1, 16)).astype(np.float32)
    frozen, _ = norm(x, [0.0], [x.std()])
    real, _ = norm(x, [1.0], [1.0])
    np.testing.assert_allclose(frozen, real, rtol=0, atol=2e-6)


def test_paths_have_gates_and_deviations_of_their_own():
    for path, expected in enumerate((-1.3416394449, -0.75)):
        y, _ = norm(X, [1.0, 0.0], [9.0, 4.0], path=path, paths=2)
        assert y[0, 0, 0] == pytest.approx(expected, rel=1e-6)


def test_the_first_position_has_a_deviation_of_its_own():
    x = np.concatenate([X, X], axis=1)
    y, _ = norm(x, [0.0], [[2.0, 4.0]], first_position=True)
    np.testing.assert_allclose(y[0, :, 0], [-1.5, -0.75])


@pytest.mark.parametrize(
    ("gate", "sigma", "expected"),
    [(1.0, 2.0, 2.1), (1.0, 0.0, 3.0), (0.0, 2.0, 2.0), (0.7, 2.0, 2.0)],
)
def test_the_moving_average(gate, sigma, expected):
    """sigma 2, momentum 0.9, batch mean 3: 2.1 while the norm is real, and the first as it is."""
    x = np.asarray([[[-2.0, 2.0], [-4.0, 4.0]]], np.float32)  # deviations 2 and 4
    _, found = norm(x, [gate], [sigma])
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_the_moving_average_of_the_first_position():
    x = np.asarray([[[-50.0, 50.0], [-2.0, 2.0], [-4.0, 4.0]]], np.float32)
    _, found = norm(x, [1.0], [[40.0, 2.0]], first_position=True)
    np.testing.assert_allclose(found, [[41.0, 2.1]], rtol=1e-6)


def test_the_spread_of_the_last_scale():
    """Positions of deviation 1 and 3: 1, whatever the first position has; the mean has no slope."""
    deviation_BT = jnp.asarray([[100.0, 1.0, 3.0], [0.0, 2.0, 2.0]])
    np.testing.assert_allclose(scale_spread(deviation_BT), [1.0, 0.0])
    slope = jax.grad(lambda x: scale_spread(x).sum())(deviation_BT)
    np.testing.assert_allclose(slope, [[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]])


def test_the_schedule_of_gpt2_small():
    """Start 20, gaps of 2, 2 and 3 over 12 layers: the final norm at 104 (2507.02559)."""
    model = ModelConfig(num_layers=12, **FROZEN, frozen_first_position=True)
    order = "mlp,query_key,value:3,final:12,first_position"
    found = removals(model, RemovalConfig(start=20, order=order))
    at = {(removal.site, removal.layer): removal.step for removal in found}
    assert len(found) == 38
    assert [at["mlp", 0], at["mlp", 11], at["query_key", 0], at["value", 0]] == [20, 42, 44, 68]
    assert [at["value", 1], at["final", None], at["first_position", None]] == [71, 104, 116]


def test_gates_by_step():
    start = np.asarray([5, 9])
    at_once = [np.asarray(gate_of(step, start, 0)).tolist() for step in (0, 4, 5, 9)]
    assert at_once == [[1, 1], [1, 1], [0, 1], [0, 0]]
    taper = [float(gate_of(step, start, 4)[0]) for step in (5, 6, 7, 8, 9, 100)]
    assert taper[0] == 1.0
    assert taper[4:] == [0.0, 0.0]
    np.testing.assert_allclose(taper[1:4], (1 + np.cos(np.pi * np.array([1, 2, 3]) / 4)) / 2, 1e-6)


@pytest.mark.parametrize(
    ("model", "removal", "message"),
    [
        (FROZEN, {"start": 15}, "removes final at step 27, but training.steps=20"),
        (FROZEN, {"start": 5, "taper_steps": 5}, "removes final in 5 steps at step 22"),
        ({}, {"start": 1}, "removal.start=1 removes the norm mlp, which removal.order="),
        ({}, {"start": 1}, "this model does not have (model.normalization=none); set model.norm"),
        ({"normalization": "frozen_layernorm"}, {"start": 1}, "removes the norm final, which"),
        (FROZEN, {"start": 1, "order": "final,first_position"}, "the norm first_position, which"),
        ({**FROZEN, "activation": "identity", "mlp": "none"}, {"start": 1}, "model.mlp=none"),
        ({**FROZEN, "mlp_normalization": "none"}, {"start": 1}, "(model.mlp_normalization=none)"),
        ({**FROZEN, "norm_placement": "peri"}, {}, "norm_placement='peri' does not work with"),
        (FROZEN, {"start": 1, "order": "mpl"}, "unknown site 'mpl'; did you mean 'mlp'?"),
        (FROZEN, {"start": 1, "order": "mlp,mlp"}, "names mlp twice"),
        (FROZEN, {"start": 1, "order": "mlp:x"}, "the gap 'x' of mlp must be a whole number"),
        (FROZEN, {"start": 0}, "removal.start=0 must be at least 1"),
        (FROZEN, {"gap": 3}, "removal.gap=3 has no effect without removal.start"),
        ({}, {"scale_weight": 0.1}, "needs the deviation that a frozen final norm"),
        ({"qk_normalization": "frozen_layernorm"}, {}, "model.qk_normalization='frozen_layernorm'"),
        ({"frozen_first_position": True}, {}, "model.frozen_first_position=True has no effect"),
        (
            {**BRANCHES_WITHOUT, "frozen_momentum": 0.5},
            {},
            "model.frozen_momentum=0.5 has no effect without a frozen norm; set model.normalizat",
        ),
    ],
)
def test_what_cannot_be_run(model, removal, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(model, removal)


def test_the_first_position_joins_the_others_at_once():
    """So that a taper, which is for the norms before it, does not delay the end."""
    model = {**FROZEN, "frozen_first_position": True}
    order = {"order": "final:4,first_position", "taper_steps": 4}
    steps = config_of(model, None).training.steps
    config_of(model, {"start": steps - 5, **order})
    with pytest.raises(ConfigError, match=f"removes first_position at step {steps}"):
        config_of(model, {"start": steps - 4, **order})


def test_a_taper_must_end_also_where_the_first_position_is_last():
    model, order = {**FROZEN, "frozen_first_position": True}, "final:1,first_position"
    steps = config_of(model, None).training.steps
    removal = {"start": 5, "order": order, "taper_steps": steps - 6}
    config_of(model, removal)
    with pytest.raises(ConfigError, match=f"removes final in {steps - 5} steps at step {steps}"):
        config_of(model, {**removal, "taper_steps": steps - 5})


@pytest.mark.parametrize(
    ("order", "statistics", "left"),
    [
        ("mlp,query_key,value,final", "frozen", []),
        ("mlp,query_key,value", "frozen, final normalised", ["final"]),
        ("mlp,query_key,final", "normalised", ["attention"]),
        ("query_key,value,final", "normalised", ["mlp"]),
        ("final", "normalised", ["attention", "mlp"]),
        ("first_position", "normalised", ["attention", "mlp", "final"]),
    ],
)
def test_norms_that_are_not_removed_stay_layernorms(order, statistics, left):
    model = {**FROZEN, "frozen_first_position": "first" in order, "frozen_momentum": 0.8}
    config = config_of(model, {"start": 2, "gap": 1, "order": order})
    end = model_at_end(config)
    assert end.statistics == statistics
    sites = ("attention", "mlp", "final")
    assert [s for s in sites if end.normalization_at(s) == "layernorm"] == left
    assert not end.frozen_first_position
    # One inverse root for each token of a LayerNorm: 2 of each branch, 1 before the head.
    total = private_cost(DecoderShape.from_config(end, 50), 8).total
    assert total.inverse_roots == 8 * sum(1 if site == "final" else 2 for site in left)
    assert model_at_end(config_of(model, None)) == config_of(model, None).model


REMOVAL = {"start": 2, "gap": 1, "order": "mlp,query_key,value,final", "scale_weight": 0.1}


def trained(micro_batches):
    """Parameters after each of ten steps."""
    model = {**FROZEN, "mlp_pruned_layers": 1}
    built = make_parts(config_of(model, REMOVAL, gradient_accumulation=micro_batches))
    step = jax.jit(built.train_step)
    state = built.init(jax.random.key(0))
    for number in range(10):
        batch = jax.tree.map(lambda x: x.reshape(micro_batches, -1, 12), random_batch(number))
        state, metrics = step(state, batch)
        assert float(metrics.auxiliary["scale_spread"]) > 0
        yield jax.device_get(state.params)


@pytest.mark.slow
def test_training_measures_then_freezes():
    """Each sigma stays what it was when its norm went, however the batch is cut."""
    seen = list(trained(1))
    mlp = [p["blocks"]["mlp_norm"]["norm_gate"][0, 0] for p in seen]
    final = [p["final_norm"]["norm_gate"][0] for p in seen]
    assert mlp == [1.0] + [0.0] * 9  # from batch 2 on, which the state after two steps meets
    assert final == [1.0] * 6 + [0.0] * 4  # 2 + an MLP + two layers by two paths
    paths = np.asarray([p["attention_blocks"]["attention_norm"]["norm_gate"][0] for p in seen])
    assert paths.sum(0).tolist() == [3.0, 5.0]  # of layer 1: from batch 4, and from batch 6 on
    sigma = np.asarray([p["final_norm"]["sigma"][0] for p in seen])
    assert np.all(np.diff(sigma[:7]) != 0)
    assert np.all(sigma[6:] == sigma[6])
    *_, cut = trained(4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-5), seen[-1], cut)


@pytest.mark.slow
def test_before_the_first_removal_training_is_that_of_layernorm():
    """Step by step the losses of the control, up to rounding; then they part."""
    layernorm = dict.fromkeys(FROZEN, "layernorm")
    losses = []
    for model, removal in ((FROZEN, {"start": 4, "gap": 1}), (layernorm, None)):
        built = make_parts(config_of(model, removal))
        step, state = jax.jit(built.train_step), built.init(jax.random.key(0))
        losses.append([])
        for number in range(8):
            batch = jax.tree.map(lambda x: x[None], random_batch(number))
            state, metrics = step(state, batch)
            losses[-1].append(float(metrics.loss_nats))
    np.testing.assert_allclose(losses[0][:4], losses[1][:4], rtol=1e-5)
    assert losses[0][4] != pytest.approx(losses[1][4], rel=1e-5)


@pytest.mark.slow
def test_divergence_names_the_last_norm_that_went(corpus, tmp_path, monkeypatch):
    train_batch = batches.train_batch

    def faulty(windows, seed, step, batch_size, **options):
        tokens, labels = train_batch(windows, seed, step, batch_size, **options)
        if step == 4:
            labels = np.full_like(labels, 10_000)  # outside the vocabulary: NaN
        return batches.Batch(tokens, labels)

    monkeypatch.setattr(batches, "train_batch", faulty)
    model = {f"model__{key}": value for key, value in FROZEN.items()}
    config = tiny_config(*corpus, removal__start=2, removal__gap=1, removal__order="mlp", **model)
    with pytest.raises(
        NonFiniteError, match=r"at step 5: .*; the last norm that was removed is mlp"
    ):
        fit(config, tmp_path)
    (event,) = [r for r in read_metrics(tmp_path).rows["event"] if r["event"] == "non_finite"]
    assert "is mlp of layer 1, at step 3" in event["message"]


def test_the_last_removal_that_batches_have_met():
    config = config_of(FROZEN, {"start": 4})
    assert [str(last_removal(config, step)) for step in (4, 5, 7)] == [
        "None",
        "mlp of layer 0",
        "mlp of layer 1",
    ]
    assert last_removal(config_of(FROZEN), 5) is None


def test_the_first_position_joins_the_others():
    model = {**FROZEN, "frozen_first_position": True}
    config = config_of(model, {"start": 2, "order": "first_position"})
    shapes = jax.eval_shape(make_parts(config).init, jax.random.key(0)).params
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    norm = {**params["final_norm"], "sigma": jnp.asarray([[9.0, 2.0]])}
    gating = make_gating(config)
    for step, expected in ((1, [9.0, 2.0]), (2, [2.0, 2.0])):
        gated = gating({**params, "final_norm": norm}, step)
        assert np.asarray(gated["final_norm"]["sigma"]).tolist() == [expected]
        assert np.asarray(gated["final_norm"]["norm_gate"]).tolist() == [1.0]


def test_an_event_is_about_one_norm_also_where_tapers_overlap():
    config = config_of(FROZEN, {"start": 5, "gap": 2, "taper_steps": 10, "order": "mlp"})
    state = make_parts(config).init(jax.random.key(0))
    seen = []

    def probe(gated):
        seen.append(np.asarray(gated.params["blocks"]["mlp_norm"]["norm_gate"])[:, 0])
        return {"entropy_nats": np.zeros((2, 2))}

    program = types.SimpleNamespace(config=config, probe=probe)
    journal = types.SimpleNamespace(event=lambda *_, **__: None)
    Removals(program, journal).report(state, 7)  # of layer 1, while layer 0 is at 2 of 10 steps
    others = (1 + np.cos(np.pi * 0.2)) / 2
    np.testing.assert_allclose(seen, [[others, 1.0], [others, 0.0]], atol=1e-6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("removal")
    return make_corpus(folder / "corpus"), folder / "data"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pmap", "fsdp"])
def test_resume_in_the_middle_of_the_schedule(strategy, corpus, tmp_path):
    """Bit for bit, with an event for each removal and a mark in every curve."""
    changes = {
        **{f"model__{key}": value for key, value in FROZEN.items()},
        "removal__start": 2,
        "removal__gap": 1,
        "removal__taper_steps": 1,
        "removal__scale_weight": 0.1,
        "optimizer__schedule": "constant",
        "optimizer__warmup_steps": 0,
        "parallel__strategy": strategy,
        "telemetry__every": 4,
    }
    whole = tiny_config(*corpus, training__steps=12, **changes)
    fit(whole, tmp_path / "whole")
    first = dataclasses.replace(whole, checkpoint=dataclasses.replace(whole.checkpoint, every=5))
    interrupted = tmp_path / "parts"
    until_six = dataclasses.replace(
        first, evaluation=dataclasses.replace(first.evaluation, every=6)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nfllm.trainer.between.BetweenSteps.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(until_six, interrupted)
    fit(first, interrupted)
    one, two = (restore_params(path, 12)[1] for path in (tmp_path / "whole", interrupted))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    rows = read_metrics(tmp_path / "whole").rows["event"]
    removed = [row for row in rows if row["event"] == "removed"]
    sites = [(row["step"], row["site"], row.get("layer")) for row in removed]
    assert sites == [
        *((2 + layer, "mlp", layer) for layer in range(2)),
        *((4 + layer, "query_key", layer) for layer in range(2)),
        *((6 + layer, "value", layer) for layer in range(2)),
        (8, "final", None),
    ]
    assert np.shape(removed[0]["entropy_before_nats"]) == (2, 2)
    changed = [row["entropy_before_nats"] != row["entropy_after_nats"] for row in removed]
    assert changed[0]
    assert not changed[-1]  # no attention comes after the final norm
    page = Path(write_report([tmp_path / "whole"], tmp_path / "report")).read_text()
    assert "Norms that were removed" in page


def test_a_frozen_norm_that_no_branch_has_forbids_nothing():
    model = config_of({**BRANCHES_WITHOUT, "value_projection": "none"}, {}).model
    assert model.statistics == "norm-free, final normalised"


@pytest.mark.slow
def test_the_event_about_the_first_position_has_no_entropies(corpus, tmp_path):
    """The statistic from before is gone, and it does not taper."""
    changes = {f"model__{key}": value for key, value in FROZEN.items()}
    changes |= {
        "model__frozen_first_position": True,
        "removal__start": 2,
        "removal__gap": 1,
        "removal__order": "value,first_position",
        "removal__taper_steps": 1,
    }
    fit(tiny_config(*corpus, training__steps=8, telemetry__every=4, **changes), tmp_path)
    removed = [r for r in read_metrics(tmp_path).rows["event"] if r["event"] == "removed"]
    assert [row["site"] for row in removed] == ["value", "value", "first_position"]
    assert ["entropy_before_nats" in row for row in removed] == [True, True, False]
    assert removed[-1]["message"] == "step 4: the norm of first_position is removed"


@pytest.mark.parametrize("scale", remove_norms.SCALES)
def test_the_grid_compares_like_with_like(scale):
    """Variants differ in norms, activation and removals alone; each has three seeds."""
    entries = expand(remove_norms.get_experiment(scale))
    assert len(entries) == 12
    assert not any(entry.same_as for entry in entries)
    for entry in entries:
        changed = differences(entries[0].config, entry.config).keys()
        assert {key.partition(".")[0] for key in changed} <= {"model", "removal", "training"}
        assert {key for key in changed if key.startswith("training")} <= {"training.seed"}
    removed = next(entry.config for entry in entries if entry.variant == "removed_gelu")
    last = removals(removed.model, removed.removal)[-1]
    assert last.site == "final"
    assert last.step < 0.7 * removed.training.steps


def reported(label: str, events: list[dict]) -> ReportedRun:
    return ReportedRun(label, label, None, Metrics({"event": events}, []), {}, None, {}, ())


def test_a_panel_of_one_site_has_the_marks_of_its_run():
    rows = [{"step": 3, "event": "removed", "kind": "event"}]
    runs = [reported("a", rows), reported("b", [])]
    panels = [LayerCurves(run.label_at("mlp"), np.arange(9), np.ones((9, 2)), None) for run in runs]
    figure = figures.layer_curves(panels, "share")
    charts = [layers_chart(p, a) for p, a in zip(panels, figure.axes, strict=False)]
    before = [len(axes.lines) for axes in figure.axes]
    blocks = [Pictures("x", "", figure, [], charts)]
    (section,) = mark_removals([Section("", "", blocks)], runs)
    assert [list(chart.marks) for chart in section.blocks[0].charts] == [[3], []]
    after = [len(axes.lines) for axes in figure.axes]
    assert [new - old for new, old in zip(after, before, strict=True)][:2] == [1, 0]


def test_marks_in_every_curve_over_steps():
    rows = [{"step": step, "event": "removed", "kind": "event"} for step in (3, 5)]
    runs = [reported("a", rows), reported("b", [])]
    curve = Curve("a", np.arange(9), np.arange(9.0))
    layers = [LayerCurves(label, np.arange(9), np.ones((9, 2)), None) for label in "ab"]
    by_step, panels = figures.curves([curve], "loss"), figures.layer_curves(layers, "entropy")
    by_layer = figures.layer_profiles([curve], "layer", "rms")
    lines = [len(axes.lines) for figure in (by_step, panels, by_layer) for axes in figure.axes]
    blocks = [Pictures("x", "", figure, [figure]) for figure in (by_step, panels, by_layer)]
    charts = [curves_chart([curve], by_step.axes[0])]
    charts += [layers_chart(p, a) for p, a in zip(layers, panels.axes, strict=False)]
    blocks.append(blocks[0]._replace(panels=[], whole=Figure(), charts=charts))
    (section,) = mark_removals([Section("", "", blocks)], runs)
    assert [list(chart.marks) for chart in section.blocks[-1].charts] == [[3, 5], [3, 5], []]
    assert json.loads(section.blocks[-1].charts[0].json())["marks"] == [3, 5]
    after = [len(axes.lines) for figure in (by_step, panels, by_layer) for axes in figure.axes]
    added = [new - old for new, old in zip(after, lines, strict=True)]
    assert (added[0], added[1:3], sum(added)) == (2, [2, 0], 4)
    assert [line.get_xdata()[0] for line in by_step.axes[0].lines[-2:]] == [3, 5]


def test_a_removal_that_was_repeated_is_one():
    """After a kill, the steps since the last checkpoint are trained again; or all of them."""
    rows = [(0, "started"), (100, "removed"), (50, "removed"), (0, "started")]
    rows += [(50, "removed"), (100, "removed"), (50, "resumed"), (100, "removed")]
    events = [{"step": step, "event": event, "site": "mlp", "layer": 0} for step, event in rows]
    run = reported("a", events)
    (section,) = removal_sections([run])
    assert [row[1] for row in section.blocks[0].table.rows] == [50, 100]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_step_that_is_left_out_does_not_keep_a_norm():
    """By the host, or by float16: the next batch meets the gates of its step."""
    model = {**FROZEN, "num_layers": 1}
    for dtype, factor in (("float32", None), ("float16", 1e9)):
        removal = {"start": 2, "gap": 1, "order": "mlp"}
        config = config_of(model, removal, dtype=dtype, non_finite="skip")
        built = make_parts(config)
        step, state = jax.jit(built.train_step), built.init(jax.random.key(0))
        batch = jax.tree.map(lambda x: x[None], random_batch(0))
        state, _ = step(state, batch)
        if factor is None:
            state = leave_out_step(state, make_gating(config))
        else:
            scale = state.loss_scale.replace(factor=jnp.float32(factor))
            state, _ = step(state.replace(loss_scale=scale), batch)
        assert (int(state.step), int(state.skipped)) == (2, 1)
        assert float(state.params["blocks"]["mlp_norm"]["norm_gate"][0, 0]) == 0.0
