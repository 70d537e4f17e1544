"""When layers leave uniform attention, as number and as picture."""

from pathlib import Path

import numpy as np
import pytest
from grid_groups import group_of

from nfllm.papers.departure import departure_table, departures, layer_entropies
from nfllm.papers.entropy_figures import layers_through_training, overload_picture
from nfllm.papers.sections import paper_sections

NAMES = {"sm+r": "norm-free ReLU", "sm+g": "norm-free GELU"}


def test_the_last_time_that_a_layer_falls_below_counts() -> None:
    steps_N = np.array([0, 10, 20, 30])
    columns = {
        "never": [4.0, 4.0, 3.0, 3.0],  # 3/4 of 4 itself is overloaded
        "for good": [4.0, 2.9, 2.0, 1.0],
        "for a while": [4.0, 2.0, 3.5, 3.5],
        "twice": [4.0, 2.0, 3.5, 2.0],
        "from the start": [1.0, 1.0, 1.0, 1.0],
        "NaN at the end": [4.0, 2.0, 2.0, np.nan],
        "NaN before": [4.0, np.nan, 2.0, 2.0],
    }
    found = departures(steps_N, np.array(list(columns.values())).T, maximum=4.0)
    assert found.tolist() == [np.inf, 10, np.inf, 30, 0, np.inf, 20]


def entropies(early: float) -> np.ndarray:
    """[L, H] of four layers; the first has a head at M = 3.8."""
    entropy_LH = np.full((4, 4), 1.0)
    entropy_LH[0] = [3.8, early, early, early]
    return entropy_LH


def test_table_and_pictures(tmp_path: Path) -> None:
    losses = {"sm+r": [4.0, 4.0], "sm+g": [4.1, 4.1]}
    found = {"sm+r": [entropies(1.0), entropies(2.0)], "sm+g": [entropies(1.0), entropies(3.8)]}
    group = group_of(tmp_path, losses, found)
    steps_N, entropy_SNL = layer_entropies(group, "sm+g")
    assert entropy_SNL.shape == (2, len(steps_N), 4)
    assert entropy_SNL[:, -1, 0] == pytest.approx([1.7, 3.8])
    table = departure_table(group, list(NAMES))
    first = dict(zip([c.title for c in table.columns], table.rows[0], strict=False))
    assert first["sm+r: seeds that left"] == "2 of 2"
    assert first["sm+g: seeds that left"] == "1 of 2"

    figure = overload_picture(group, NAMES, ceiling=3.9)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images][:2]
    np.testing.assert_allclose(drawn[0][0], [3.8, 1.5, 1.5, 1.5])
    np.testing.assert_allclose(drawn[1][0], [3.8, 2.4, 2.4, 2.4])
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    np.testing.assert_allclose(lines["norm-free GELU"].get_ydata()[0], (1.7 + 3.8) / 2)

    through = layers_through_training(group, NAMES)
    assert [axes.get_title(loc="left") for axes in through.axes] == ["layer 0", "layer 1"]

    titles = [section.title for section in paper_sections([group])]
    assert "When layers leave uniform attention" in titles


def test_without_the_pair_there_is_no_such_section(tmp_path: Path) -> None:
    group = group_of(tmp_path, {"sm+ln+g": [4.0], "sm+r": [4.0]})
    titles = [section.title for section in paper_sections([group])]
    assert "When layers leave uniform attention" not in titles
