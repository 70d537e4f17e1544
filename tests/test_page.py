"""The page's HTML: well formed, escaped, self-contained, with each number in its cell."""

import re
import urllib.parse

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_checks import cells, check

from nfllm.report import figures, page
from nfllm.report.figures import Curve, Heatmap
from nfllm.report.heatmap import color_rules, heatmap_html, scale_html
from nfllm.report.page import Markup, Pictures, Rows, Section, render_page, table_html
from nfllm.report.tables import Column, Table
from nfllm.report.write import write_page


def test_every_cell_tells_its_value():
    entropy_LH = np.array([[0.5, 1.0], [2.0, np.nan], [3.878, 0.0]])
    content = heatmap_html(Heatmap("SM+R", entropy_LH, 3.878), limits=(0.0, 3.878))
    check(content)
    assert cells(content) == [
        ("layer 0, head 0: 0.500 nats, 13% of ceiling", "0.5"),
        ("layer 0, head 1: 1.000 nats, 26% of ceiling", "1.0"),
        ("layer 1, head 0: 2.000 nats, 52% of ceiling", "2.0"),
        ("layer 1, head 1: nan", "×"),
        ("layer 2, head 0: 3.878 nats, 100% of ceiling", "3.9"),
        ("layer 2, head 1: 0.000 nats, 0% of ceiling", "0.0"),
    ]
    assert "3 layers × 2 heads, ceiling 3.88 nats" in content


def test_a_cell_has_the_colour_of_its_value():
    values = [1.0, 1.99, 3.0, 4.99, 5.0, 8.0, 0.5]
    content = heatmap_html(Heatmap("a", np.array([values]), None), limits=(1.0, 5.0))
    classes = re.findall(r"<td class=(\w+) ", content)
    assert classes == ["c0", "c15", "c32", "c63", "c63", "c63", "c0"]
    rules = dict(re.findall(r"\.(c\d+)\{background:(#\w+)", color_rules()))
    assert len(rules) == 64
    assert (rules["c0"], rules["c63"]) == ("#450457", "#fbe723")  # viridis, from dark to bright
    assert "ceiling" not in content


@pytest.mark.parametrize(
    ("limits", "heads", "text"),
    [((3.4, 3.88), 8, "3.71"), ((2.0, 3.88), 8, "3.7"), ((3.4, 3.88), 9, "3.7")],
)
def test_a_narrow_scale_has_two_digits_where_they_fit(limits, heads, text):
    heatmap = Heatmap("a", np.full((1, heads), 3.71), 3.88)
    assert {shown for _, shown in cells(heatmap_html(heatmap, limits))} == {text}
    figure = figures.entropy_heatmaps([heatmap, Heatmap("b", np.array([[limits[0]]]), 3.88)], 3.88)
    drawn = {t.get_text() for t in figure.axes[0].texts}
    assert drawn == {"3.71" if limits[0] > 3 else "3.7"}


def test_one_cell_of_a_heatmap_can_be_reached_with_tab():
    content = heatmap_html(Heatmap("a", np.ones((3, 4)), None), (0.0, 4.0))
    assert content.count("tabindex=0") == 1
    assert content.count("tabindex=-1") == 11
    assert "<output>" in content


@pytest.mark.parametrize(
    ("shape", "quiet"), [((2, 4), False), ((12, 16), False), ((24, 32), True), ((48, 12), True)]
)
def test_small_cells_have_no_visible_numbers(shape, quiet):
    content = heatmap_html(Heatmap("a", np.ones(shape), None), (0.0, 4.0))
    assert ("heat quiet" in content) == quiet
    assert len(cells(content)) == shape[0] * shape[1]


def test_the_scale_marks_the_largest_entropy():
    content = scale_html((1.0, 4.0), observed=3.25, ceiling=4.0)
    check(content)
    ticks = re.findall(r"<span[^>]*>([^<]+)<", content)
    assert ticks == ["1.00", "2.00", "3.00", "ceiling 4.00"]
    assert 'left:75.00%" title="M: 3.250 nats"' in content
    assert "title" not in scale_html((0.0, 4.0), observed=None)
    assert "ceiling" not in scale_html((0.0, 4.0), observed=None, ceiling=5.0)


def test_a_long_key_may_break_where_its_words_end():
    table = Table((Column("run"), Column("optimizer.learning_rate", ".2f")), (("a", 1.0),))
    assert "<th scope=col class=n>optimizer.<wbr>learning_<wbr>rate</th>" in table_html(table)


def test_tables_align_numbers_and_show_what_is_missing():
    table = Table((Column("run"), Column("loss", ".2f")), (("a", 1.234), ("b", None)))
    checker = check(table_html(table))
    assert [text for _, text in checker.texts] == ["run", "loss", "a", "1.23", "b", "–"]
    numbers = [tag for tag, attributes in checker.tags if attributes.get("class") == "n"]
    assert numbers == ["th", "td", "td"]


@settings(max_examples=100, deadline=None)
@given(name=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1))
def test_any_name_comes_back_as_text(name):
    table = Table((Column(name), Column("x")), ((name, name),))
    checker = check(table_html(table))
    assert [text for _, text in checker.texts].count(name) == 3 + (name == "x")
    entropy = check(heatmap_html(Heatmap(name, np.ones((1, 1)), None), (0.0, 4.0)))
    assert ("b", name) in entropy.texts


EVIL = "</title></style></script><script>alert('1')</script><b>&\"x"


def evil_page() -> str:
    figure = figures.curves(
        [Curve(EVIL, np.arange(3), np.ones(3)), Curve("b", np.arange(3), np.ones(3))], "y"
    )
    table = Table((Column(EVIL), Column("x", ".1f")), ((EVIL, 1.0),))
    heatmap = heatmap_html(Heatmap(EVIL, np.ones((2, 2)), 3.9), (0.0, 3.9))
    blocks = [
        Pictures("train_loss", EVIL, figure, [figure, figure]),
        Rows("rows", EVIL, table),
        Rows("hidden", "", table, shown=False),
        Markup(heatmap + page.details_html(EVIL, page.list_html([EVIL]))),
    ]
    return render_page(EVIL, EVIL, [Section(EVIL, EVIL, blocks)])


def test_nothing_that_a_run_is_called_becomes_markup():
    content = evil_page()
    checker = check(content)
    tags = [tag for tag, _ in checker.tags]
    assert tags.count("script") == 1
    assert tags.count("title") == 1
    shown = [text for tag, text in checker.texts if text == EVIL]
    # title, h1, two leads, h2, heading and row of the one table shown, label, summary, item
    assert len(shown) >= 10
    assert not any(name.startswith("on") for _, attributes in checker.tags for name in attributes)


@pytest.mark.parametrize("name", ["C#", "50%25 less", 'a"b onclick="x', "a&b<c>"])
def test_links_lead_to_the_files_whatever_their_names(name, tmp_path):
    figure = figures.curves([Curve("a", np.arange(3), np.ones(3))], "y")
    table = Table((Column("x"),), (("1",),))
    blocks = [Pictures(f"f_{name}", "", figure, [figure]), Rows(f"t_{name}", "", table)]
    index = write_page("", "", [Section("", "", blocks)], tmp_path)
    checker = check(index.read_text())
    links = [dict(attributes)["href"] for tag, attributes in checker.tags if tag == "a"]
    assert len(links) == 3
    assert all((tmp_path / urllib.parse.unquote(link)).is_file() for link in links)
    assert not any(key.startswith("on") for _, attributes in checker.tags for key in attributes)


def test_two_tables_of_one_name_would_overwrite_each_other(tmp_path):
    table = Table((Column("x"),), (("1",),))
    blocks = [Rows("a", "", table), Rows("b", "", table), Rows("a", "", table)]
    with pytest.raises(ValueError, match="two parts of a page save the table a; rename one"):
        write_page("", "", [Section("", "", blocks)], tmp_path)


def test_page_names_its_downloads_and_forbids_requests():
    content = evil_page()
    for link in ("figures/train_loss.png", "figures/train_loss.pdf", "tables/rows.csv"):
        assert f'href="{link}"' in content
    assert 'href="tables/hidden.csv"' in content
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', content).group(1)
    assert policy.split("; ")[0] == "default-src 'none'"
    assert "http" not in policy
    assert content.index("Content-Security-Policy") < content.index("<style>")
