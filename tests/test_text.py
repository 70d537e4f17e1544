"""The heatmap as text: what each cell says, and that it fits a terminal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm.report import ASCII_SHADES, entropy_text


def test_a_small_map_word_for_word():
    text = entropy_text([[0.0, 0.9, 1.0], [2.5, 4.0, float("nan")]], maximum=4.0)
    assert text == "\n".join(
        [
            "    H0       H1       H2",
            "L0  ░░ 0.00  ░░ 0.90  ▒▒ 1.00",
            "L1  ▓▓ 2.50  ██ 4.00  !! nan",
            "entropy in nats: ░ to 1.00, ▒ to 2.00, ▓ to 3.00, █ to 4.00",
            "! not finite: 1 of 6 heads",
        ]
    )


def test_values_give_way_to_shades_as_heads_grow():
    lines = {heads: entropy_text(np.full((1, heads), 3.5), 4.0).splitlines() for heads in (12, 24)}
    assert lines[12][1] == "L0  " + " ".join(["█3.50"] * 12)
    assert lines[24][1] == "L0  " + " ".join(["██"] * 24)


def test_heads_that_do_not_fit_continue_in_a_further_block():
    entropy_LH = np.tile(np.arange(96) % 4 + 0.5, (2, 1))
    lines = entropy_text(entropy_LH, 4.0, shades=ASCII_SHADES).splitlines()
    assert lines[1][4:] + lines[4][4:] == ".:*#" * 24
    assert lines[0].split()[:2] == ["H0", "H4"]
    assert lines[3].split()[0] == "H72"
    assert len(lines) == 7


@settings(max_examples=150, deadline=None)
@given(
    layers=st.integers(1, 120),
    heads=st.integers(1, 300),
    value=st.sampled_from([0.0, 3.87, 1e9, -1.0, float("inf"), float("nan")]),
    width=st.integers(40, 120),
)
def test_no_line_is_wider_than_the_terminal(layers, heads, value, width):
    entropy_LH = np.full((layers, heads), min(value, 9.0))
    text = entropy_text(entropy_LH, 3.88, width=width)
    *rows, legend = [line for line in text.splitlines() if not line.startswith("!")]
    assert max(map(len, rows)) <= width
    assert legend.startswith("entropy in nats")
    assert sum(line.startswith("L") for line in rows) % layers == 0


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match=r"expected shape \[L, H\], got \[3\]"):
        entropy_text(np.ones(3), 4.0)
    with pytest.raises(ValueError, match=r"expected shape \[L, H\], got \[2, 0\]"):
        entropy_text(np.ones((2, 0)), 4.0)
    for maximum in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a positive number of nats"):
            entropy_text(np.ones((2, 2)), maximum)
