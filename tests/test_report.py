"""Reports of whole run directories, damaged ones included, and the page in a real browser."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from page_checks import cells, check
from synthetic_runs import make_config, write_run
from trainer import TIMEOUT_SECONDS

from nfllm.papers import published
from nfllm.papers.published import REFERENCE
from nfllm.report import write_report
from nfllm.report.__main__ import main
from nfllm.report.runs import notation, read_runs
from nfllm.report.training_sections import slope_sections, slopes_without_gradient
from nfllm.rundir import Origin, RunError
from nfllm.rundir.metrics import MetricsWriter

pytestmark = pytest.mark.slow

PUBLISHED = json.loads(Path(published.__file__).with_name("published.json").read_text())
HEATMAPS = {
    name: np.array(v) for name, v in PUBLISHED["head_entropy_nats"].items() if name != "about"
}
GPT2 = {"model.num_layers": 12, "model.num_heads": 12, "model.embed_dim": 768}
EVIL = '<b>&"x'


def rows_of(report: Path, name: str) -> list[dict[str, str]]:
    with (report / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """Six runs with the published entropies and perplexities, of which SM broke at step 600."""
    runs = tmp_path_factory.mktemp("paper")
    variants = {
        "SM+LN+G": ("layernorm", "gelu", 2.688),
        "SM+LN+R": ("layernorm", "relu", 2.757),
        "SM+LN": ("layernorm", "identity", 3.38),
        "SM+G": ("none", "gelu", 3.197),
        "SM+R": ("none", "relu", 2.936),
        "SM": ("none", "identity", 9.0),
    }
    for name, (normalization, activation, perplexity) in variants.items():
        write_run(
            runs / name.lower().replace("+", "_"),
            {**GPT2, "model.normalization": normalization, "model.activation": activation},
            HEATMAPS[name],
            float(np.log(perplexity)),
            nonfinite_from=600 if name == "SM" else None,
        )
    write_report(sorted(runs.iterdir()), runs / "report", REFERENCE)
    return runs / "report"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Runs of two context lengths and other shapes, a learned slope, and damaged directories."""
    runs = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    deep = {"model.num_layers": 48, "model.num_heads": 2, "model.context_length": 256}
    write_run(
        runs / "deep",
        deep,
        rng.uniform(0, 4.5, (48, 2)),
        3.0,
        data_fingerprint="other",
        spectra=False,
    )
    two = {"model.num_layers": 2, "data.dataset": "python_source", "data.sources": "</td><script>"}
    write_run(runs / EVIL, two, np.array([[0.1, 1.0, 2.0, 3.0], [3.6, 3.0, np.nan, 0.2]]), 3.5)
    slopes_NL = 0.01 * np.linspace(1.0, 0.2, 21)[:, None] * np.ones(4)
    write_run(
        runs / "slopes",
        {"model.activation": "learnable_leaky_relu", "optimizer.decay_slopes": True},
        rng.uniform(0, 3.8, (4, 4)),
        3.2,
        slopes_NL=slopes_NL,
        decayed_parameters=("blocks.mlp.slope",),
        undecayed_parameters=(),
    )
    write_run(runs / "silent", {"training.seed": 1}, None, 3.4)
    with MetricsWriter(runs / "silent") as metrics:
        metrics.write("event", 500, event="removed", message="", site="mlp", layer=0)
    half = runs / "half"
    half.mkdir()
    (half / "config.json").write_text('{"format_version": 1, "nf')
    (half / "corpus.json").write_text("{")
    lines = (runs / "slopes" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    probes = b"".join(line for line in lines if b"telemetry" in line)
    (half / "metrics.jsonl").write_bytes(probes[:-20])
    (runs / "empty").mkdir()
    newer = runs / "newer"
    shutil.copytree(runs / "silent", newer)
    text = (newer / "config.json").read_text().replace('"format_version": 1', '"format_version": 2')
    (newer / "config.json").write_text(text)
    names = ("deep", EVIL, "slopes", "silent", "half", "empty", "newer")
    write_report([runs / name for name in names], runs / "report")
    return runs / "report"


def test_page_is_well_formed_and_loads_nothing(paper, mixed):
    for report in (paper, mixed):
        checker = check((report / "index.html").read_text())
        scripts = [attributes for tag, attributes in checker.tags if tag == "script"]
        assert scripts.count({}) == 1
        assert all(attributes in ({}, {"type": "application/json"}) for attributes in scripts)


def test_every_link_leads_to_a_file(paper, mixed):
    for report in (paper, mixed):
        links = set(
            re.findall(r'href="((?:figures|tables)/[^"]+)"', (report / "index.html").read_text())
        )
        files = {str(p.relative_to(report)) for p in report.rglob("*.*") if p.name != "index.html"}
        assert links == files
        assert all((report / link).stat().st_size > 20 for link in links)
        stems = {link.rpartition(".")[0] for link in links if link.endswith(".png")}
        assert {f"{stem}.pdf" for stem in stems} <= links


def test_perplexities_stand_beside_the_published_ones(paper):
    rows = {row["run"]: row for row in rows_of(paper, "perplexity")}
    assert list(rows) == ["SM", "SM+G", "SM+LN", "SM+LN+G", "SM+LN+R", "SM+R"]
    for name in ("SM+LN+G", "SM+LN+R", "SM+LN", "SM+G", "SM+R"):
        row = rows[name]
        assert float(row["perplexity"]) == pytest.approx(PUBLISHED["perplexity"]["gpt2_T128"][name])
        assert row["published perplexity"] == str(PUBLISHED["perplexity"]["gpt2_T128"][name])
        measured = float(row["change against SM+LN+G (%)"])
        assert float(row["published change against SM+LN+G (%)"]) == pytest.approx(measured)
    assert float(rows["SM+R"]["change against SM+LN+G (%)"]) == pytest.approx(9.2262, abs=1e-4)
    assert rows["SM"]["published perplexity"] == ""
    assert rows["SM"]["steps"] == "1,000 of 1,000"


def test_heatmap_cells_are_the_entropies(paper):
    titles = cells((paper / "index.html").read_text())
    shown = np.array([float(title.split(": ")[1].split()[0]) for title, _ in titles])
    expected = [HEATMAPS[name] for name in ("SM", "SM+G", "SM+LN", "SM+LN+G", "SM+LN+R", "SM+R")]
    np.testing.assert_allclose(shown.reshape(6, 12, 12), expected, atol=5e-4)
    rows = rows_of(paper, "entropy_T128")
    stored = np.array([float(row["entropy (nats)"]) for row in rows])
    np.testing.assert_allclose(stored.reshape(6, 12, 12), expected, atol=1e-9)


def test_heads_are_summed_up_by_depth(paper):
    rows = {row["run"]: row for row in rows_of(paper, "heads_T128")}
    maximum = 3.87
    for name, entropy_LH in HEATMAPS.items():
        row = rows[name]
        assert float(row["M (nats)"]) == pytest.approx(maximum)
        assert float(row["ceiling (nats)"]) == pytest.approx(3.8782, abs=1e-4)
        assert float(row["mean entropy (nats)"]) == pytest.approx(entropy_LH.mean())
        early, late = np.mean(entropy_LH[:6] >= 2.9025), np.mean(entropy_LH[6:] >= 2.9025)
        assert float(row["heads ≥ 3M/4, early half (%)"]) == pytest.approx(100 * early, abs=1e-3)
        assert float(row["heads ≥ 3M/4, late half (%)"]) == pytest.approx(100 * late, abs=1e-3)
        collapsed = 100 * np.mean(entropy_LH < 0.9675)
        assert float(row["heads < M/4 (%)"]) == pytest.approx(collapsed, abs=1e-3)


def test_divergence_is_located(paper):
    rows = {row["run"]: row for row in rows_of(paper, "first_nonfinite")}
    assert list(rows["SM"].values()) == ["SM", "600", "probe", "residual", "1", "64"]
    assert rows["SM+R"]["site"] == "none in 21 probes"
    assert (paper / "figures" / "nonfinite.png").exists()
    before = rows_of(paper, "before_nonfinite")
    assert [row["step"] for row in before] == ["350", "400", "450", "500", "550"]
    assert float(before[-1]["largest |attention logit|"]) == pytest.approx(0.1 + 5 * 0.55)
    assert float(before[-1]["largest |residual|"]) == pytest.approx(8.0)


def test_spectra_are_told_by_layer_and_through_training(paper, mixed):
    rows = rows_of(paper, "participation")
    assert [row["run"] for row in rows[::12]] == [
        "SM",
        "SM+G",
        "SM+LN",
        "SM+LN+G",
        "SM+LN+R",
        "SM+R",
    ]
    last = rows[11]
    assert (last["layer"], last["units"]) == ("11", "3072")
    assert float(last["before the activation"]) == pytest.approx(80)
    assert float(last["after the activation"]) == pytest.approx(600)
    for side in ("pre", "post"):
        for name in (f"mlp_{side}_participation", f"mlp_{side}_participation_training"):
            assert (paper / "figures" / f"{name}.png").exists()
    # `deep` is of before there were spectra, and `silent` has no telemetry.
    found = {row["run"] for row in rows_of(mixed, "participation")}
    assert found == {f"SM+R · {EVIL}", "SM+learnable_leaky_relu", "half"}


def test_differences_are_those_of_the_configs(paper):
    assert [row["key"] for row in rows_of(paper, "differences")] == [
        "model.activation",
        "model.normalization",
    ]


def test_context_lengths_are_never_mixed(mixed):
    content = (mixed / "index.html").read_text()
    assert "4.560 nats, the causal ceiling ln(T!)/T at T = 256" in content
    assert "3.878 nats, the causal ceiling ln(T!)/T at T = 128" in content
    (deep,) = rows_of(mixed, "heads_T256")
    assert float(deep["ceiling (nats)"]) == pytest.approx(4.559599, abs=1e-6)
    assert len(rows_of(mixed, "heads_T128")) == 2
    # the half-written run has entropies, but no config to tell its context length
    (unknown,) = rows_of(mixed, "heads")
    assert (unknown["run"], unknown["ceiling (nats)"]) == ("half", "")
    changes = {r["run"]: r for r in rows_of(mixed, "perplexity")}
    baseline = next(iter(changes))
    assert changes[f"SM+R · {EVIL}"][f"change against {baseline} (%)"] == ""


def test_saturation_through_training_by_site_and_layer(tmp_path):
    """In percent; sites without layers have one curve, and runs without point functions none."""
    shares = np.linspace(0.0, 0.2, 21)
    saturation = {"mlp_sum": shares[:, None] * [1.0, 2.0], "embedding": shares / 2}
    dyt = {"model.normalization": "dyt", "model.num_layers": 2, "model.norm_placement": "post"}
    heads = np.full((2, 4), 2.0)
    write_run(tmp_path / "dyt", dyt, heads, 3.0, saturation=saturation)
    write_run(tmp_path / "plain", {"model.num_layers": 2}, heads, 3.0)
    index = write_report([tmp_path / "dyt", tmp_path / "plain"], tmp_path / "report")
    assert "Saturation of point functions through training" in index.read_text()
    found = rows_of(tmp_path / "report", "saturation")
    last = [row for row in found if row["step"] == "1000"]
    sites = [(row["run"].rpartition(" · ")[2], row["layer"]) for row in last]
    assert sites == [("embedding", "0"), ("mlp_sum", "0"), ("mlp_sum", "1")]
    shares = [float(row["saturated entries (%)"]) for row in last]
    assert shares == pytest.approx([10.0, 20.0, 40.0])
    write_report([tmp_path / "plain"], tmp_path / "report")
    assert "Saturation" not in (tmp_path / "report" / "index.html").read_text()


def test_damage_is_named_and_the_rest_is_shown(mixed):
    texts = [text for _, text in check((mixed / "index.html").read_text()).texts]
    shown = " ".join(texts)
    assert re.search(r"half : \S*config\.json is incomplete", shown)
    assert re.search(r"half : \S*corpus\.json is incomplete", shown)
    assert re.search(r"half : metrics\.jsonl line \d+ is incomplete; left out", shown)
    assert re.search(r"empty : \S* has no config\.json", shown)
    assert "empty : metrics.jsonl is missing" in shown
    assert re.search(r"newer : \S* has format_version 2, written by nfllm 0\.1\.0", shown)
    assert "No telemetry was recorded by SM+R · silent, empty, newer." in shown
    rows = {row["run"]: row for row in rows_of(mixed, "perplexity")}
    assert rows["newer"]["perplexity"] == rows["SM+R · silent"]["perplexity"] != ""
    assert rows["half"]["steps"].endswith(", unfinished")
    assert rows["empty"]["steps"] == "0, unfinished"


def test_a_head_without_entropy_is_counted(mixed):
    row = next(row for row in rows_of(mixed, "heads_T128") if row["run"].endswith(EVIL))
    assert row["heads not finite"] == "1"
    assert row["mean entropy (nats)"] == "nan"


def test_slopes_are_held_against_decay_alone(tmp_path):
    changes = {
        "model.activation": "learnable_leaky_relu",
        "optimizer.decay_slopes": True,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
    }
    slopes_NL = np.full((21, 4), 0.01)
    write_run(
        tmp_path / "a", changes, np.ones((4, 4)), 3.0, slopes_NL, decayed_parameters=("mlp.slope",)
    )
    write_run(
        tmp_path / "b", changes, np.ones((4, 4)), 3.0, slopes_NL, decayed_parameters=("mlp.kernel",)
    )
    (section,) = slope_sections(read_runs([tmp_path / "a", tmp_path / "b"]))
    decayed, kept = (axes for axes in section.blocks[0].whole.axes if axes.get_title(loc="left"))
    steps, curve = decayed.lines[-1].get_data()
    np.testing.assert_allclose(curve, 0.01 * (1 - 1e-3 * 0.1) ** np.asarray(steps), rtol=1e-6)
    assert decayed.texts[0].get_text() == "decay alone"
    np.testing.assert_array_equal(kept.lines[-1].get_ydata(), np.full(21, 0.01))
    assert kept.texts[0].get_text() == "start (no decay)"


def test_slopes_of_a_run_that_has_just_begun_or_began_with_those_of_another(tmp_path):
    changes = {"model.activation": "learnable_leaky_relu", "optimizer.decay_slopes": True}
    decayed = {"slopes_NL": np.full((1, 4), 0.01), "decayed_parameters": ("mlp.slope",)}
    write_run(tmp_path / "young", changes, np.ones((4, 4)), 3.0, num_probes=1, **decayed)
    origin = Origin("another", 9, "abc")
    write_run(
        tmp_path / "warm", changes, np.ones((4, 4)), 3.0, num_probes=1, origin=origin, **decayed
    )
    young, warm = read_runs([tmp_path / "young", tmp_path / "warm"])
    curve = slopes_without_gradient(young)
    assert (curve.x.tolist(), curve.y.tolist()) == ([0], pytest.approx([0.01]))
    assert slopes_without_gradient(warm) is None
    assert len([*slope_sections([young, warm])]) == 1


def test_seeds_of_one_variant_are_averaged(tmp_path):
    for seed, loss in enumerate((3.0, 3.1, 3.5)):
        write_run(tmp_path / f"seed{seed}", {"training.seed": seed}, None, loss)
    unfinished = write_run(tmp_path / "seed3", {"training.seed": 3}, None, 9.0)
    with MetricsWriter(unfinished) as metrics:
        metrics.write("event", 1000, event="resumed", message="")
    write_run(tmp_path / "gelu", {"model.activation": "gelu"}, None, 3.3)
    write_report(sorted(tmp_path.iterdir()), tmp_path / "report")
    rows = {row["variant"]: row for row in rows_of(tmp_path / "report", "seeds")}
    assert rows["SM+R"]["seeds"] == "3"
    assert float(rows["SM+R"]["mean eval loss (nats)"]) == pytest.approx(3.2)
    # s = sqrt(0.07), t(0.975; 2) = 4.302653
    assert float(rows["SM+R"]["95% to"]) == pytest.approx(3.2 + 4.302653 * (0.07 / 3) ** 0.5)
    assert rows["SM+G"]["seeds"] == "1"
    assert "None of these runs recorded telemetry" in (tmp_path / "report/index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.normalization": "layernorm", "model.activation": "gelu"}, "SM+LN+G"),
        ({}, "SM+R"),
        ({"model.normalization": "layernorm", "model.activation": "identity"}, "SM+LN"),
        ({"model.activation": "identity"}, "SM"),
        ({"model.normalization": "rmsnorm", "model.activation": "silu"}, "SM+rmsnorm+silu"),
        ({"model.activation": "leaky_relu", "model.negative_slope": 0.1}, "SM+leaky_relu 0.1"),
        (
            {"model.activation": "learnable_leaky_relu", "model.slope_sharing": "model"},
            "SM+learnable_leaky_relu (model)",
        ),
        ({"model.activation": "identity", "model.mlp_scaling": "learned"}, "SM+ScFFN"),
        ({"model.mlp_scaling": "learned"}, "SM+R+Sc"),
        (
            {
                "model.activation": "identity",
                "model.mlp": "fused",
                "model.mlp_scaling": "learned",
                "model.mlp_pruned_layers": 1,
                "model.softmax_temperature": "head_position",
                "objective.entropy_weight": 1e-5,
            },
            "EReg(SM(t)+ScFuFFN i1)",
        ),
        ({"model.activation": "identity", "model.mlp": "none"}, "SM without FFN"),
        ({"model.normalization": "layernorm", "model.norm_placement": "post"}, "SM+LN (post)+R"),
        ({"model.normalization": "dyt", "model.norm_placement": "output"}, "SM+dyt (output)+R"),
    ],
)
def test_notation_is_the_papers(changes, expected):
    assert notation(make_config(changes)) == expected


def test_status_is_how_the_run_ended(tmp_path):
    def status(*events: tuple[int, str], policy: str = "stop") -> str:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        write_run(run, {"training.non_finite": policy}, None, 3.0)
        lines = [{"step": s, "kind": "event", "event": e, "message": ""} for s, e in events]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_runs([run])[0].status

    assert status((0, "started"), (9, "finished")) == "finished"
    assert status((0, "started"), (9, "finished"), (9, "resumed")) == "unfinished"
    assert status((0, "started"), (5, "interrupted")) == "interrupted"
    stopped = (5, "non_finite"), (5, "stopped")
    assert status((0, "started"), *stopped) == "stopped by a non-finite value"
    assert status((0, "started"), *stopped, policy="skip") == "stopped by a non-finite value"
    assert status((0, "started"), (5, "non_finite"), policy="skip") == "unfinished"
    # What happened last counts, and not what has the largest step.
    assert status((0, "started"), (9, "finished"), (5, "resumed")) == "unfinished"
    assert status((0, "started"), (5, "checkpoint")) == "unfinished"


def test_uneven_arrays_are_left_out_and_named(tmp_path):
    run = write_run(tmp_path / "run", {}, np.ones((4, 4)), 3.0)
    lines = [
        {
            "step": 1100,
            "kind": "telemetry",
            "entropy_nats": [[1.0], [2.0, 3.0]],
            "mlp_pre_rms": 3.0,
        },
        {"step": 1200, "kind": "telemetry", "nonfinite": {"residual": [1]}},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (read,) = read_runs([run])
    assert "entropy_nats" not in read.series
    assert "residual_rms" in read.series
    assert read.nonfinite is None
    named = [warning.split()[0] for warning in read.warnings]
    assert named == ["entropy_nats", "mlp_pre_rms", "nonfinite"]


def test_a_run_without_any_finite_entropy_is_shown(tmp_path):
    run = write_run(tmp_path / "run", {}, np.full((4, 4), np.nan), float("nan"), num_probes=2)
    content = write_report([run], tmp_path / "report").read_text()
    assert [text for _, text in cells(content)] == ["×"] * 16
    assert "No head of these runs has a finite entropy above 0." in content
    (row,) = rows_of(tmp_path / "report", "perplexity")
    assert row["perplexity"] == "nan"


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / part / "run", {}, None, 3.0) for part in "ab"]
    assert [run.label for run in read_runs(runs)] == ["SM+R · a/run", "SM+R · b/run"]
    with pytest.raises(RunError, match="is named twice"):
        read_runs([runs[0], runs[0] / ".." / "run"])


def test_command_writes_into_the_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", {}, np.ones((1, 1)), 3.0, num_probes=1)
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report" / "index.html")
    check((run / "report" / "index.html").read_text())


def test_command_names_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a directory; name the directory of a run" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", str(tmp_path / "report")]) == 2
    expected = f"{tmp_path} has neither config.json nor metrics.jsonl, so it is no run"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path)])
    assert "several runs need --out DIR" in capsys.readouterr().err


def test_import_is_light():
    code = "import sys, nfllm.report; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"matplotlib", "jax", "flax"} & set(modules.stdout.split())


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]
PROBE = """<script>
const cell = document.querySelector(".heat tbody td");
cell.focus();
cell.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
const wide = [...document.querySelectorAll("main > section, .panel, figure")].filter(
  (element) => element.getBoundingClientRect().right > innerWidth + 1);
const [chart] = Chart.all;
const box = chart.svg.getBoundingClientRect();
const send = (event) => chart.svg.dispatchEvent(event);
const point = (type, x, y) => send(new PointerEvent(type, { button: 0, bubbles: true,
  clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
const press = (key) => send(new KeyboardEvent("keydown", { key, bubbles: true }));
const drag = (x, y) => {
  point("pointerdown", 0.3, 0.3);
  point("pointermove", x, y);
  point("pointerup", x, y);
};
const shown = () => ({ x: chart.x, y: chart.y, texts: [...chart.svg.querySelectorAll("text")]
  .map((text) => text.textContent) });
const states = { start: shown() };
drag(0.6, 0.3); states.across = shown();
drag(0.6, 0.6); states.both = shown();
send(new MouseEvent("dblclick", { bubbles: true })); states.back = shown();
press("+"); states.closer = shown();
press("ArrowRight"); states.right = shown();
press("0"); states.again = shown();
chart.buttons.logY.click(); states.log = shown();
chart.buttons.logY.click();
chart.buttons.logX.click(); states.logSteps = shown();
point("pointermove", 0.5, 0.5);
document.title = JSON.stringify({
  states,
  told: chart.output.textContent,
  charts: document.querySelectorAll(".chart > svg").length,
  statics: document.querySelectorAll(".chart [role=img] svg").length,
  overflow: document.documentElement.scrollWidth - innerWidth,
  wide: wide.length,
  marks: [...document.querySelectorAll(".chart [data-mark]")].map((mark) => mark.dataset.mark),
  focused: document.activeElement.title,
  output: document.querySelector(".heat output").textContent,
  smallest: Math.min(...[...document.querySelectorAll(".panel svg text")].map((text) =>
    parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width
    / text.ownerSVGElement.viewBox.baseVal.width)),
});
console.log("probe ran");
</script></body>"""


def browse(page: Path, width: int, scratch: Path) -> tuple[dict, str, list[str]]:
    """What the page measures of itself, the console, and the addresses that were requested."""
    probed = page.with_name(f"probed{width}.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    log = scratch / f"net{width}.json"
    options = [
        f"--user-data-dir={scratch}/{width}",
        f"--log-net-log={log}",
        f"--window-size={width},900",
    ]
    command = ["chromium", *FLAGS, *options, probed.as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
    )
    probed.unlink()
    title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    console = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    # What the browser does on its own account has "not an origin" as its initiator.
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    requested = [
        event["url"]
        for event in events
        if event.get("initiator", "not an origin") != "not an origin"
        and not event.get("url", "file:").startswith(("file:", "data:"))
    ]
    return json.loads(title), console, requested


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_page_in_a_browser(paper, mixed, width, tmp_path):
    for name, report in (("paper", paper), ("mixed", mixed)):
        (tmp_path / name).mkdir()
        measured, console, requested = browse(report / "index.html", width, tmp_path / name)
        assert [line for line in console.splitlines() if "probe ran" not in line] == []
        assert "probe ran" in console
        assert requested == []
        assert measured["overflow"] <= 0
        assert measured["wide"] == 0
        assert measured["focused"].startswith("layer 1, head 0: ")
        assert measured["output"] == measured["focused"]
        assert measured["smallest"] >= 9  # CSS pixels of the smallest text in any figure
        assert measured["charts"] > 0 == measured["statics"]
        assert set(measured["marks"]) == ({"500"} if name == "mixed" else set())
        if name == "paper":
            assert_zoomable(measured["states"])
        assert re.fullmatch(r"layer \d+, step \d+: [\d.]+|causal ceiling.*", measured["told"])


def assert_zoomable(states: dict) -> None:
    """The first chart, of layer entropies over 1,000 steps, in the states of the probe."""
    start, across, both = states["start"], states["across"], states["both"]
    assert start["x"] == [0, 1000]
    assert 0 < across["x"][0] < across["x"][1] < 1000
    assert across["y"] is None  # a flat drag keeps all values
    assert across["x"][0] < both["x"][0] < both["x"][1] < across["x"][1]
    assert both["y"][0] < both["y"][1]
    for state in (across, both):
        assert state["texts"] != start["texts"]
    assert states["back"] == states["again"] == start
    closer, right = states["closer"], states["right"]
    assert closer["x"] == pytest.approx([150, 850])
    assert right["x"] == pytest.approx([290, 990])
    assert states["log"]["x"] == [0, 1000]
    assert states["log"]["texts"] != start["texts"]
    assert states["logSteps"]["x"] == [50, 1000]  # step 0 has no logarithm


def test_costs_leave_out_what_is_not_counted_and_say_so(tmp_path):
    runs = [tmp_path / "counted", tmp_path / "gated"]
    write_run(runs[0], {}, None, 4.0)
    write_run(runs[1], {"model.mixer": "regla"}, None, 4.0)
    page = write_report(runs, tmp_path / "both", private_cost=True).read_text()
    assert "against the cost of private inference" in page
    assert len(rows_of(tmp_path / "both", "private_cost")) == 1
    assert "model.mixer=&#x27;regla&#x27; is not counted" in page
    alone = write_report(runs[1:], tmp_path / "one", private_cost=True).read_text()
    assert "model.mixer=&#x27;regla&#x27; is not counted" in alone
