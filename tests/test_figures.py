"""Figures: they show the numbers given, and their texts neither overlap nor leave the page."""

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from nfllm.report import figures, render
from nfllm.report.cost_sections import pareto
from nfllm.report.figures import Counts, Curve, Heatmap, LayerCurves
from nfllm.report.style import (
    RUN_COLORS,
    contrast,
    entropy_limits,
    panel_grid,
    set_step_axis,
    shortened,
)

STEPS = np.arange(0, 1000, 10)


def random_entropy(layers: int, heads: int) -> np.ndarray:
    return np.random.default_rng(layers).uniform(0.0, 3.8, (layers, heads))


def heatmaps(*shapes: tuple[int, int]) -> list[Heatmap]:
    return [Heatmap(f"run {n}", random_entropy(*shape), 3.88) for n, shape in enumerate(shapes)]


def drawn_texts(figure: Figure) -> list[Text]:
    """Every text that a reader sees; tick labels beyond an axis' range are not drawn."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.draw_without_rendering()
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for location, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
                if not low <= location <= high:
                    unseen.add(label)
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip("\u200b ") and text not in unseen
    ]


def assert_readable(figure: Figure) -> None:
    """No text leaves the figure, and no two texts overlap."""
    texts = drawn_texts(figure)
    assert len(texts) > 5
    boxes = [text.get_window_extent() for text in texts]
    page = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1
        assert inside, f"{text.get_text()!r} leaves the figure: {box}"
    for (one, a), (two, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one.get_text()!r} overlaps {two.get_text()!r}"


def test_heatmaps_show_their_entropies_on_one_scale():
    maps = heatmaps((2, 4), (12, 12))
    figure = figures.entropy_heatmaps(maps, maximum=3.88)
    images = [axes.images[0] for axes in figure.axes[:2]]
    for image, heatmap in zip(images, maps, strict=True):
        np.testing.assert_array_equal(image.get_array(), heatmap.entropy)
        assert image.get_clim() == (min(heatmap.entropy.min() for heatmap in maps), 3.88)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["run 0", "run 1"]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == "entropy (nats)"
    assert [tick.get_text() for tick in bar.get_yticklabels()][-1] == "3.88\nceiling"


@pytest.mark.parametrize(
    ("entropies", "low"),
    [([2.5, 3.0], 2.5), ([3.87, 3.88], 3.6), ([np.nan, 0.5], 0.5), ([np.nan, np.nan], 3.6)],
)
def test_the_colour_scale_begins_at_the_smallest_entropy(entropies, low):
    limits = entropy_limits([np.array([entropies])], 4.0)
    assert limits == pytest.approx((low, 4.0))


def test_heatmaps_of_different_contexts_state_their_own_ceilings():
    entropy_LH = random_entropy(2, 4)
    maps = [Heatmap("a", entropy_LH, 3.878), Heatmap("b", entropy_LH, 4.560)]
    labels = [axes.get_xlabel() for axes in figures.entropy_heatmaps(maps, 4.56).axes[:2]]
    assert labels == ["head   (ceiling 3.88 nats)", "head   (ceiling 4.56 nats)"]


def test_a_head_without_entropy_is_crossed_out():
    entropy_LH = random_entropy(3, 3)
    entropy_LH[1, 2] = np.nan
    figure = figures.entropy_heatmaps([Heatmap("a", entropy_LH, None)], 3.88)
    crosses = [text for text in figure.axes[0].texts if text.get_text() == "×"]
    assert [cross.get_position() for cross in crosses] == [(2.0, 1.0)]
    assert figure.axes[0].get_xlabel() == "head"


@pytest.mark.parametrize(
    "shapes",
    [[(2, 4)], [(48, 16)], [(24, 32), (2, 2)], [(12, 12)] * 6, [(1, 1)], [(6, 96), (96, 6)]],
)
def test_heatmaps_are_readable_at_every_size(shapes):
    assert_readable(figures.entropy_heatmaps(heatmaps(*shapes), 3.88))


def test_heatmaps_grow_with_the_layers():
    shallow = figures.entropy_heatmaps(heatmaps((2, 12)), 3.88)
    deep = figures.entropy_heatmaps(heatmaps((48, 12)), 3.88)
    assert deep.get_figheight() > 4 * shallow.get_figheight()


def test_histogram_bars_are_the_shares():
    shares_R4 = np.array([[0.04, 0.14, 0.74, 0.08], [0.25, 0.25, 0.25, 0.0]])
    figure = figures.head_histograms(["SM+LN+G", "broken"], shares_R4, maximum=3.87)
    widths = [bar.get_width() for bars in figure.axes[0].containers for bar in bars]
    starts = [bar.get_x() for bars in figure.axes[0].containers for bar in bars]
    np.testing.assert_allclose(np.reshape(widths, (4, 2)).T, shares_R4)
    np.testing.assert_allclose(np.reshape(starts, (4, 2))[:, 0], [0, 0.04, 0.18, 0.92])
    written = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(written) == sorted(["14", "74", "8", "25", "25", "25"])
    assert figure.legends[0].get_title().get_text() == "quarters of M = 3.87 nats"


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_histogram_is_readable(rows):
    shares_R4 = np.full((rows, 4), 0.25)
    labels = [f"SM+learnable_leaky_relu · run_with_a_very_long_name_{n}" for n in range(rows)]
    assert_readable(figures.head_histograms(labels, shares_R4, 3.87))


def test_long_series_are_means_of_equal_bins():
    x_N = np.arange(400.0)
    figure = figures.curves([Curve("a", x_N, 2 * x_N)], "loss")
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x[:2], [1.0, 4.0])  # bins of 3 steps
    np.testing.assert_allclose(y, 2 * x)
    assert len(x) == 134


def test_a_value_that_is_not_finite_leaves_a_gap_and_a_cross_at_the_first():
    y_N = np.ones(100)
    y_N[[40, 41, 60]] = [np.inf, np.nan, np.nan]
    line, cross = figures.curves([Curve("a", STEPS, y_N)], "loss").axes[0].lines
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [40, 41, 60]
    assert cross.get_xdata().tolist() == [400]
    assert cross.get_color() == line.get_color()


def test_a_brief_blow_up_does_not_flatten_the_rest():
    y_N = np.full(100, 4.0)
    y_N[10] = 1e6
    assert figures.curves([Curve("a", STEPS, y_N)], "loss").axes[0].get_ylim()[1] < 10
    log = figures.curves([Curve("a", STEPS, y_N)], "norm", log=True).axes[0]
    assert log.get_yscale() == "log"
    assert log.get_ylim()[1] > 1e6


def test_a_run_keeps_its_colour_in_every_figure():
    curve = Curve("b", np.arange(4), np.ones(4), place=1)
    for figure in (
        figures.curves([curve], "loss"),
        figures.layer_profiles([curve], "layer", "rms"),
    ):
        assert figure.axes[0].lines[0].get_color() == RUN_COLORS[1]
    ninth = Curve("i", np.arange(4), np.ones(4), place=len(RUN_COLORS) + 1)
    line = figures.curves([ninth], "loss").axes[0].lines[0]
    assert (line.get_color(), line.get_linestyle()) == (RUN_COLORS[1], "--")


@pytest.mark.parametrize("draw", ["curves", "layer_profiles"])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("label", ["SM+R", "SM+leaky_relu · a_run_directory_with_a_long_name_{}"])
def test_curves_are_readable(draw, count, label):
    series = [
        Curve(label.format(n), np.arange(12), np.geomspace(0.01, 20, 12), n) for n in range(count)
    ]
    if draw == "curves":
        figure = figures.curves(series, "evaluation loss (nats)", log=True)
    else:
        figure = figures.layer_profiles(series, "layer", "rms of the MLP's pre-activation")
    assert_readable(figure)
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert len(legends) == (count if count > 1 else 0)


def test_profiles_leave_out_what_a_logarithm_cannot_show():
    figure = figures.layer_profiles([Curve("a", np.arange(3), np.array([0, 2, np.nan]))], "l", "r")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [np.nan, 2, np.nan])
    nothing = figures.layer_profiles([Curve("a", np.arange(2), np.zeros(2))], "l", "r")
    assert nothing.axes[0].get_yscale() == "linear"


def test_layer_curves_show_each_layer_and_the_reference():
    y_NL = np.stack([np.full(100, 1.0), np.full(100, 2.0)], axis=1)
    reference = Curve("decay alone", STEPS, np.linspace(3.0, 0.5, 100))
    figure = figures.layer_curves([LayerCurves("SM+R", STEPS, y_NL, reference)], "slope")
    first, second, dashed = figure.axes[0].lines
    assert (first.get_ydata()[0], second.get_ydata()[0]) == (1.0, 2.0)
    assert tuple(first.get_color()) != tuple(second.get_color())
    assert dashed.get_linestyle() == "--"
    np.testing.assert_array_equal(dashed.get_ydata(), reference.y)
    assert [text.get_text() for text in figure.axes[0].texts] == ["decay alone"]
    assert figure.axes[0].get_ylim() == pytest.approx((0.375, 3.125))  # values, and a margin


@pytest.mark.parametrize("draw", ["curves", "layer_curves", "nonfinite_counts"])
def test_axes_begin_where_the_values_do(draw):
    x_N, y_NL = STEPS + 5000, np.stack([3.5 + 0.01 * np.arange(100)] * 2, axis=1)
    panels = {
        "curves": [Curve("a", x_N, y_NL[:, 0])],
        "layer_curves": [LayerCurves("a", x_N, y_NL, None)],
        "nonfinite_counts": [Counts("a", x_N, {"residual": np.ones((100, 2), int)})],
    }[draw]
    axes = getattr(figures, draw)(panels, *["y"] * (draw != "nonfinite_counts")).axes[0]
    assert 4900 < axes.get_xlim()[0] <= 5000
    if draw != "nonfinite_counts":
        assert 3.4 < axes.get_ylim()[0] <= 3.5


@pytest.mark.parametrize("draw", ["curves", "layer_curves"])
def test_rounding_errors_do_not_look_like_curves(draw):
    """As of heads that attend uniformly, whose entropies differ in the seventh digit."""
    y_NL = 2.5486862 + 1e-7 * np.random.default_rng(0).normal(size=(100, 2))
    panels = {
        "curves": [Curve("a", STEPS, y_NL[:, 0])],
        "layer_curves": [LayerCurves("a", STEPS, y_NL, None)],
    }[draw]
    low, high = getattr(figures, draw)(panels, "entropy (nats)").axes[0].get_ylim()
    assert (low, high) == pytest.approx((0.95 * 2.5486862, 1.05 * 2.5486862), abs=1e-5)


def test_layer_curves_on_a_logarithmic_axis_hold_every_positive_value():
    y_NL = np.stack([np.full(100, 3.0), np.full(100, 600.0)], axis=1)
    y_NL[5] = [0.0, np.nan]
    for panels in (
        [LayerCurves("a", STEPS, y_NL, None)],
        [LayerCurves("b", STEPS, 0 * y_NL, None)],
    ):
        axes = figures.layer_curves(panels, "ratio", log=True).axes[0]
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert 0 < low < high
        if panels[0].label == "a":
            assert (low, high) == pytest.approx((2.7, 660))


def test_panels_of_layer_curves_share_their_range():
    panels = [LayerCurves(str(n), STEPS, np.full((100, 2), float(n)), None) for n in (1, 5)]
    figure = figures.layer_curves(panels, "entropy (nats)")
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


@pytest.mark.parametrize(("count", "layers"), [(1, 1), (1, 48), (6, 12)])
def test_layer_curves_are_readable(count, layers):
    y_NL = np.linspace(0.2, 3.8, 100 * layers).reshape(100, layers)
    ceiling = Curve("causal ceiling", STEPS[[0, -1]], np.full(2, 3.88))
    panels = [LayerCurves("SM+LN+G · a_long_directory_name", STEPS, y_NL, ceiling)] * count
    assert_readable(figures.layer_curves(panels, "entropy (nats)", (0.0, 4.46)))


def test_nonfinite_counts_are_sums_over_layers():
    counts = {"residual": np.array([[0, 0, 0], [1, 2, 4]]), "mlp_out": np.array([[0, 0], [0, 5]])}
    figure = figures.nonfinite_counts([Counts("SM", np.array([0, 50]), counts)])
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 7], [0, 5]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["residual", "mlp_out"]
    assert_readable(figure)


def test_drawing_changes_neither_its_input_nor_matplotlib():
    entropy_LH = random_entropy(3, 3)
    before, parameters = entropy_LH.copy(), dict(matplotlib.rcParams)
    figure = figures.entropy_heatmaps([Heatmap("a", entropy_LH, None)], 3.88)
    render.svg(figure, "a")
    np.testing.assert_array_equal(entropy_LH, before)
    assert dict(matplotlib.rcParams) == parameters


def test_pyplot_is_never_imported():
    code = "import sys, nfllm.report.figures, nfllm.report.render; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "matplotlib.figure" in modules.stdout.split()
    assert "matplotlib.pyplot" not in modules.stdout.split()


@pytest.mark.parametrize("label", ["_hidden", "cost $5$", r"\alpha $", '<b>&"x', "走る 🚀", "$$"])
def test_labels_are_shown_literally(label):
    series = [Curve(label, STEPS, np.ones(100)), Curve("other", STEPS, np.ones(100), 1)]
    svg = render.svg(figures.curves(series, "loss"), "a")
    texts = ["".join(element.itertext()) for element in ET.fromstring(svg).iter("text")]
    assert label in [text.strip("\u200b") for text in texts]
    assert len(render.png(figures.curves(series, "loss"))) > 1000


def test_svg_stands_inside_a_page():
    figure = figures.curves([Curve("a", STEPS, np.ones(100))], "loss")
    content = render.svg(figure, "one")
    one, two = ET.fromstring(content), ET.fromstring(render.svg(figure, "two"))
    ids = [element.get("id") for element in one.iter() if element.get("id")]
    others = [element.get("id") for element in two.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 0
    assert not set(ids) & set(others)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', content)
    assert {a or b for a, b in targets} == set(ids)
    assert "currentColor" in content
    for unwanted in ("http", "font-family", "<style", "metadata"):
        assert unwanted not in content


@pytest.mark.parametrize(
    "figure",
    [
        figures.curves([Curve("a", STEPS, np.ones(100)), Curve("b", STEPS, np.ones(100), 1)], "y"),
        figures.entropy_heatmaps(heatmaps((3, 3)), 3.88),
        figures.head_histograms(["a"], np.full((1, 4), 0.25), 3.87),
        figures.layer_curves(
            [LayerCurves("a", STEPS, np.ones((100, 2)), Curve("r", STEPS, np.ones(100)))], "y"
        ),
        figures.nonfinite_counts([Counts("a", STEPS, {"residual": np.ones((100, 2), int)})]),
    ],
)
def test_every_text_names_its_colour(figure):
    texts = list(ET.fromstring(render.svg(figure, "a")).iter("text"))
    colors = {re.search(r"fill:? ?(\S+?)(;|$)", text.get("style")) for text in texts}
    assert None not in colors  # the default is black, which a dark page does not show
    known = {"currentColor", "#050505", "#ffffff"}
    assert {match.group(1) for match in colors} <= known


def test_the_same_figure_gives_the_same_bytes():
    def draw() -> Figure:
        return figures.entropy_heatmaps(heatmaps((2, 4)), 3.88)

    assert render.png(draw()) == render.png(draw())
    assert render.pdf(draw()) == render.pdf(draw())
    assert render.svg(draw(), "a") == render.svg(draw(), "a")
    content = render.png(draw())
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width = int.from_bytes(content[16:20], "big")  # of the header, pixels
    assert width == round(300 * draw().get_figwidth())
    assert render.pdf(draw())[:5] == b"%PDF-"


def test_contrast_is_that_of_wcag():
    assert contrast((1.0, 1.0, 1.0, 1.0)) == contrast((0.5, 0.5, 0.5, 1.0)) == "#050505"
    assert contrast((0.0, 0.0, 0.0, 1.0)) == contrast((0.4, 0.4, 0.4, 1.0)) == "#ffffff"


def test_long_labels_lose_their_middle():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"


def test_the_front_is_what_nothing_beats_in_both():
    cost, perplexity = np.array([3.0, 1, 2, 2, 3]), np.array([1.0, 5, 3, 4, 1])
    np.testing.assert_array_equal(pareto(cost, perplexity), [1, 2, 0])


@pytest.mark.parametrize(
    ("panels", "rows", "columns"),
    [(1, 1, 1), (3, 1, 3), (4, 2, 2), (5, 2, 3), (6, 2, 3), (7, 3, 3)],
)
def test_rows_of_panels_are_as_equal_as_can_be(panels, rows, columns):
    figure, axes = panel_grid(2.0, [1.0] * panels)
    assert len(axes) == panels
    assert figure.get_size_inches().tolist() == [2 * columns, rows]
    places = [a.get_subplotspec().get_position(figure).bounds for a in axes]
    assert len({(round(x, 3), round(y, 3)) for x, y, _, _ in places}) == panels  # none on another


def test_steps_have_separators():
    figure, (axes,) = panel_grid(4.0, [2.0])
    axes.plot([0, 32_000], [1.0, 2.0])
    set_step_axis(axes)
    assert "10,000" in [text.get_text() for text in drawn_texts(figure)]
