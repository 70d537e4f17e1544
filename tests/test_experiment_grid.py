"""From a grid to the runs of it: names, seeds, changes, and what is wrong with a grid."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from synthetic_runs import write_run

from configs import paper
from nfllm.config import Config, ConfigError, get_config
from nfllm.experiment import Experiment, Group, Variant
from nfllm.experiment.cause import CAUSE_FILE, Cause
from nfllm.experiment.grid import Entry, expand, load_experiment, read_overrides, select
from nfllm.experiment.measured import read_group
from nfllm.experiment.outcome import Outcome, read_outcome, refuse_other_data, refuse_other_runs
from nfllm.experiment.scheduler import _last_line
from nfllm.rundir import RunError, read_record
from nfllm.rundir.metrics import MetricsWriter

PAPER = Path(paper.__file__)


def grid(**variants: Variant) -> Experiment:
    return Experiment("a note", {"main": Group("a title", get_config(), variants)})


@pytest.fixture(autouse=True)
def parts_of_a_grid(registries: None) -> None:
    """The paper's grid registers two activations."""


def paper_entries(scale: str) -> list[Entry]:
    return expand(load_experiment(PAPER, scale))


def test_seeds_come_one_after_the_other_so_that_a_part_of_a_grid_compares():
    relu = Variant({"model.activation": "relu"}, seeds=(3, 1))
    gelu = Variant({"model.activation": "gelu"}, seeds=(1, 3))
    control = Variant({"model.activation": "silu"}, seeds=(1,))
    entries = expand(grid(control=control, relu=relu, gelu=gelu))
    assert [entry.name for entry in entries] == [
        "main/relu/seed1",
        "main/gelu/seed1",
        "main/relu/seed3",
        "main/gelu/seed3",
        "main/control/seed1",
    ]
    assert [entry.config.training.seed for entry in entries] == [1, 1, 3, 3, 1]
    assert [e.config.model.activation for e in entries[-2:]] == ["gelu", "silu"]


def test_a_duplicate_is_named_and_not_dropped():
    entries = expand(grid(a=Variant({"model.activation": "relu"}), b=Variant({})))
    assert [entry.same_as for entry in entries] == [None, "main/a/seed0"]


def test_a_part_is_chosen_by_name_and_a_duplicate_stands_for_the_run_that_it_uses():
    relu, gelu = ({"model.activation": name} for name in ("relu", "gelu"))
    entries = expand(grid(a=Variant(relu, (0, 1)), b=Variant(gelu, (0, 1)), c=Variant(gelu)))
    a0, b0, a1, b1, _ = entries
    assert select(entries, "*") == [a0, b0, a1, b1]
    assert select(entries, "main/*/seed1") == [a1, b1]
    assert select(entries, "main/[ac]/seed0") == [a0, b0]
    with pytest.raises(ConfigError, match=r"--only 'A/.' matches no run.* such as 'main/a/seed0'"):
        select(entries, "A/*")


def test_a_grid_without_a_run_is_an_error():
    with pytest.raises(ConfigError, match="the grid has no run at this scale"):
        expand(grid())


def test_the_last_error_is_that_of_this_start(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: the disk is full\n")
    start = log.stat().st_size
    assert _last_line(log, start) == "it printed nothing"
    with log.open("a") as file:
        file.write("Traceback\nMemoryError\n")
    assert _last_line(log, start) == "MemoryError"
    assert _last_line(log, 0) == "error: the disk is full"


def test_a_diverged_run_whose_reason_is_damaged_stays_diverged(tmp_path):
    (entry,) = expand(grid(a=Variant({})))
    write_run(tmp_path / entry.name, {}, None, 4.0)
    entry = dataclasses.replace(entry, config=read_record(tmp_path / entry.name).config)
    with MetricsWriter(tmp_path / entry.name) as metrics:
        metrics.write("event", 1000, message="of no kind")
        metrics.write("event", 1000, event="stopped", message="")
    assert read_outcome(tmp_path, entry) == Outcome("diverged", "the line that says why is lost")


@pytest.mark.parametrize("content", ["", '{"step": 1', "{}", '{"moon": 1}'])
def test_what_was_measured_and_cannot_be_read_is_measured_again(tmp_path, content):
    (entry,) = expand(grid(a=Variant({})))
    write_run(tmp_path / entry.name, {}, None, 4.0)
    config = read_record(tmp_path / entry.name).config
    entry = dataclasses.replace(entry, config=config, linear_replacement=True)
    with MetricsWriter(tmp_path / entry.name) as metrics:
        metrics.write("event", 1000, event="finished", message="")
    whole = dict.fromkeys((f.name for f in dataclasses.fields(Cause)), 1.0)
    (tmp_path / entry.name / CAUSE_FILE).write_text(json.dumps(whole))
    assert read_outcome(tmp_path, entry).is_final
    (tmp_path / entry.name / CAUSE_FILE).write_text(content)
    assert not read_outcome(tmp_path, entry).is_final
    unasked = dataclasses.replace(entry, linear_replacement=False)
    assert read_outcome(tmp_path, unasked).is_final
    group = read_group("main", "", [unasked], {entry.name: Outcome("finished")}, tmp_path)
    assert [measured.cause for measured in group] == [None]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_run_that_ends_without_a_finite_loss_has_diverged(tmp_path, loss):
    (entry,) = expand(grid(a=Variant({})))
    write_run(tmp_path / entry.name, {}, None, 4.0)
    entry = dataclasses.replace(entry, config=read_record(tmp_path / entry.name).config)
    with MetricsWriter(tmp_path / entry.name) as metrics:
        metrics.write("eval", 1000, eval_loss_nats=loss)
    expected = Outcome("diverged", f"its last evaluation loss is {loss}")
    assert read_outcome(tmp_path, entry) == expected


def test_overrides_reach_every_run_and_the_grid_is_left_alone():
    experiment = grid(a=Variant({}), b=Variant({"model.activation": "gelu"}))
    overrides = read_overrides(
        [
            "--config.training.steps=7",
            "--config.data.window=documents",
            "--config.model.mlp_bias=true",
        ]
    )
    entries = expand(experiment, overrides)
    assert {entry.config.model.mlp_bias for entry in entries} == {True}
    assert {entry.config.training.steps for entry in entries} == {7}
    assert {entry.config.data.window for entry in entries} == {"documents"}
    assert experiment.groups["main"].base.training.steps != 7


@pytest.mark.parametrize(
    ("experiment", "overrides", "message"),
    [
        (grid(a=Variant({"model.activaton": "relu"})), {}, "main/a.*did you mean 'activation'"),
        (grid(a=Variant({"modle.activation": "relu"})), {}, "main/a.*did you mean 'model'"),
        (grid(a=Variant({"model.num_heads": 5})), {}, "main/a.*num_heads=5"),
        (grid(a=Variant({"training.steps": "many"})), {}, "main/a.*training.steps='many'"),
        (grid(a=Variant({"training.steps": 3})), {"training.steps": 4}, "set by the variant"),
        (grid(a=Variant({})), {"training.step": 4}, "group main.*did you mean 'steps'"),
        (grid(**{"a/b": Variant({})}), {}, "'a/b' cannot name a directory"),
        (grid(a=Variant({"training.seed": 5})), {}, "main/a: training.seed=5 would have no effect"),
        (grid(a=Variant({})), {"training.seed": 7}, "--config.training.seed=7 would have no eff"),
        (grid(a=Variant({}, seeds=(0, 1, 0))), {}, r"main/a: seeds=\(0, 1, 0\) has a seed twice"),
    ],
)
def test_what_is_wrong_with_a_grid(experiment, overrides, message):
    with pytest.raises(ConfigError, match=message):
        expand(experiment, overrides)


@pytest.mark.parametrize("argument", ["--out2=x", "config.training.steps=3", "--config.training"])
def test_an_argument_that_is_no_override(argument):
    with pytest.raises(ConfigError, match=r"--config\.SECTION\.KEY=VALUE"):
        read_overrides([argument])


def test_a_file_that_is_no_grid(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_experiment(tmp_path / "none.py", "cpu")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"no get_experiment\(scale\)"):
        load_experiment(tmp_path / "empty.py", "cpu")
    with pytest.raises(ConfigError, match="did you mean 'cpu'"):
        load_experiment(PAPER, "cpus")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("SCALES = 'small'\ndef get_experiment(scale): pass", r"SCALES='small' must be a tuple"),
        ("SCALES = ('mal',)\ndef get_experiment(scale): pass", "returns NoneType, expected an Exp"),
        ("SCALES = ('mal',)\ndef get_experiment(): pass", "TypeError: get_experiment.* takes 0"),
        (
            "SCALES = ('mal',)\ndef get_experiment(scale):\n  return {}['x']",
            r"grid\.py, scale mal: line 3: KeyError: 'x'",
        ),
    ],
)
def test_a_grid_file_that_makes_no_experiment(tmp_path, body, message):
    (tmp_path / "grid.py").write_text(body)
    with pytest.raises(ConfigError, match=message):
        load_experiment(tmp_path / "grid.py", "mal")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variant({}, seeds=3), "Variant: seeds=3 must be a Sequence, such as"),
        (lambda: Variant({}, seeds="01"), "Variant: seeds='01' must be a Sequence"),
        (lambda: Variant({}, seeds=()), r"Variant: seeds=\(\) must be integers"),
        (lambda: Variant({}, seeds=(0.5,)), r"seeds=\(0\.5,\) must be integers"),
        (lambda: Variant(None), "changes=None must be a Mapping, such as {'model.activation'"),
        (lambda: Variant({"model": {"activation": "gelu"}}), "the change 'model': .* such as 'mod"),
        (lambda: Variant({3: "gelu"}), "the change 3: 'gelu' must be a key and its value"),
        (lambda: Group("", Config.from_dict(get_config()), {}), "base=.* must be a ConfigDict"),
        (lambda: Group("", get_config(), {"a": {}}), "variants has 'a': {}, expected a name and a"),
        (lambda: Group("", get_config(), {1: Variant({})}), "variants has 1: .* expected a name"),
        (lambda: Experiment("", []), "groups=.* must be a Mapping, from names to Groups"),
    ],
)
def test_parts_of_a_grid_of_the_wrong_type(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_output_directory_of_another_grid_is_left_alone(tmp_path):
    (entry,) = expand(grid(a=Variant({"training.steps": 1000})))
    refuse_other_runs([entry], tmp_path)  # nothing is there
    write_run(tmp_path / entry.name, {"training.steps": 999}, None, 4.0)
    with pytest.raises(RunError, match=r"is of another grid: of main/a/seed0, its directory holds"):
        refuse_other_runs([entry], tmp_path)
    other = dataclasses.replace(entry, variant="b")
    refuse_other_runs([entry, other], tmp_path)  # which can be trained


@pytest.mark.parametrize("scale", paper.SCALES)
def test_the_paper_grid_compares_like_with_like(scale):
    entries = paper_entries(scale)
    main = {entry.variant: entry.config for entry in entries if entry.group == "main"}
    assert {"sm+ln+g", "sm+ln+r", "sm+ln", "sm+g", "sm+r", "sm"} <= main.keys()
    assert len({entry.name for entry in entries}) == len(entries)
    shared = {(e.name, e.same_as) for e in entries if e.same_as is not None}
    assert {e.group for e in entries if e.same_as is not None} <= {"cause"}
    for seed in {e.seed for e in entries if e.group == "cause"}:
        assert (f"cause/gelu/seed{seed}", f"main/sm+g/seed{seed}") in shared
        assert (f"cause/relu/seed{seed}", f"main/sm+r/seed{seed}") in shared
    for name, config in main.items():
        # Only what a row is about may differ within a group.
        assert config.data == main["sm+g"].data, name
        assert config.model.block_init_std == main["sm+g"].model.block_init_std, name
        assert config.optimizer.learning_rate == main["sm+g"].optimizer.learning_rate, name
        assert config.training.steps == main["sm+g"].training.steps, name
        assert config.model.final_normalization == "layernorm", name
    assert (main["sm+g"].model.normalization, main["sm+g"].model.activation) == ("none", "gelu")


def test_the_paper_grid_has_the_rows_that_were_promised():
    for scale in ("cpu", "cpu_long", "gpu"):
        entries = paper_entries(scale)
        main = [entry for entry in entries if entry.group == "main"]
        seeds = {v: [e.seed for e in main if e.variant == v] for v in paper.FOUR}
        assert all(
            len(found) >= {"cpu": 3, "cpu_long": 5, "gpu": 2}[scale] for found in seeds.values()
        )
        configs = [entry.config for entry in main]
        assert {c.model.negative_slope for c in configs if c.model.activation == "leaky_relu"} == {
            0.1,
            0.01,
        }
        learned = {
            (c.model.slope_sharing, c.optimizer.decay_slopes)
            for c in configs
            if c.model.activation == "learnable_leaky_relu"
        }
        assert learned == {
            (sharing, decay) for sharing in ("layer", "model") for decay in (True, False)
        }
        assert {c.training.dtype for c in configs if c.model.activation == "identity"} == {
            "auto",
            "float16",
        }
        literal = [e.config.model.block_init_std for e in entries if e.group == "std_0.02"]
        assert literal == [0.02] * {"cpu": 4, "cpu_long": 8, "gpu": 0}[scale]
        assert (main[0].config.model.block_init_std == 0.02) == (scale == "gpu")


def test_only_what_is_trained_and_measured_makes_another_run(tmp_path):
    (entry,) = expand(grid(a=Variant({"training.steps": 1000})))
    write_run(tmp_path / entry.name, {"training.steps": 1000}, None, 4.0)
    recorded = read_record(tmp_path / entry.name).config

    def outcome(**changes):
        values = recorded.to_dict()
        for key, value in changes.items():
            section, _, name = key.partition("__")
            values[section][name] = value
        return read_outcome(tmp_path, dataclasses.replace(entry, config=Config.from_dict(values)))

    measured = dataclasses.replace(entry, config=recorded, linear_replacement=True)
    assert read_outcome(tmp_path, measured).status == "not run"  # no cause.json
    (tmp_path / entry.name / CAUSE_FILE).write_text("{}")
    assert outcome(model__remat=True, parallel__cpu_devices=1) == Outcome("finished")
    assert outcome(training__log_every=1, checkpoint__keep=5) == Outcome("finished")
    for change in (
        {"optimizer__weight_decay": 0.3},
        {"evaluation__max_windows": 5},
        {"training__steps": 1001},
    ):
        found = outcome(**change)
        assert found.status == "failed"
        assert "choose another --out" in found.message
        assert found.is_final  # training would go on with the other run's model


def test_runs_of_data_that_changed_are_not_compared_with_those_of_what_it_became(tmp_path):
    variants = {
        "old": Variant({}),
        "new": Variant({"model.activation": "gelu"}),
        "documents": Variant({"data.window": "documents"}),
    }
    entries = expand(grid(**variants))
    fingerprints = {"old": "aaaa", "new": "bbbb", "documents": "cccc"}
    for age, entry in enumerate(entries):
        run = tmp_path / entry.name
        write_run(run, {}, None, 4.0, data_fingerprint=fingerprints[entry.variant])
        os.utime(run / "config.json", (1000 + age, 1000 + age))
    outcomes = dict.fromkeys((entry.name for entry in entries), Outcome("finished"))
    found = refuse_other_data(entries, outcomes, tmp_path)
    old, new, documents = (found[f"main/{variant}/seed0"] for variant in variants)
    assert (old.status, new.status, documents.status) == ("failed", "finished", "finished")
    assert "data with fingerprint aaaa, which has since changed to bbbb; delete it" in old.message


def test_the_long_grid_is_the_papers_run_at_a_small_size():
    experiment = load_experiment(PAPER, "cpu_long")
    entries = expand(experiment)
    counts = dict.fromkeys((entry.variant for entry in entries), 0)
    for entry in entries:
        counts[entry.variant] += 1
        training, model, optimizer = (
            entry.config.training,
            entry.config.model,
            entry.config.optimizer,
        )
        assert (model.num_layers, model.embed_dim, model.num_heads) == (8, 64, 4)
        assert (training.steps, training.batch_size, model.context_length) == (32_000, 4, 128)
        assert entry.tokens == 16_384_000
        assert (optimizer.variant, optimizer.learning_rate) == ("hf_adamw", 1e-3)
        assert (optimizer.schedule, optimizer.schedule_power) == ("polynomial", 1.0)
        assert (optimizer.warmup_fraction, optimizer.weight_decay) == (0.05, 0.1)
        assert entry.config.data.dataset == "python_source"
        assert entry.config.data.vocab_size == 2048
        assert entry.config.data.sources == "{site-packages}"
        assert entry.config.checkpoint.every <= 2000  # what an interruption costs
    assert min(counts.values()) >= 2  # a control of one seed decides nothing
    assert counts["half_linear"] == 5
    other = expand(experiment, {"data.sources": "elsewhere"})
    assert {entry.config.data.sources for entry in other} == {"elsewhere"}
