"""Tables: numbers in, rows out, against values worked out by hand."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import make_config, make_record

from nfllm.analysis.heads import head_histogram
from nfllm.papers import published
from nfllm.papers.published import find_published
from nfllm.report import tables
from nfllm.report.tables import Column, Result, Table
from nfllm.rundir import UNKNOWN_DATA

PUBLISHED = json.loads(Path(published.__file__).with_name("published.json").read_text())


def result(label: str, perplexity: float | None, data: tuple = ("9f0c", 128), **fields) -> Result:
    loss = None if perplexity is None else math.log(perplexity)
    known = {"published_perplexity": None, "published_change": None}
    return Result(
        label, "norm-free", "1,000 of 1,000", 1000, 5000, loss, perplexity, data, **known | fields
    )


def column(table: Table, title: str) -> list:
    return [row[[c.title for c in table.columns].index(title)] for row in table.rows]


def test_change_in_percent_against_the_baseline():
    results = [result("SM+LN+G", 2.688), result("SM+R", 2.936), result("SM+G", 3.197)]
    table = tables.perplexity_table(results, "SM+LN+G", "SM+LN+G")
    changes = column(table, "change against SM+LN+G (%)")
    np.testing.assert_allclose(changes, [0.0, 9.226190, 18.936012], rtol=1e-6)
    assert column(table, "perplexity") == [2.688, 2.936, 3.197]


def test_runs_on_other_data_have_no_change():
    results = [
        result("a", 4.0),
        result("b", 8.0, data=("9f0c", 256)),
        result("c", None),
        result("d", 6.0),
    ]
    table = tables.perplexity_table(results, "a", "SM+LN+G")
    assert column(table, "change against a (%)") == [0.0, None, None, 50.0]


def test_a_diverged_run_is_not_a_number():
    table = tables.perplexity_table([result("a", 4.0), result("b", math.nan)], "a", "SM+LN+G")
    (_, change) = column(table, "change against a (%)")
    assert math.isnan(change)


def test_columns_appear_only_with_something_in_them():
    titles = [c.title for c in tables.perplexity_table([result("a", 4.0)], None, "SM+G").columns]
    assert titles == [
        "run",
        "normalization",
        "steps",
        "parameters",
        "tokens",
        "eval loss (nats)",
        "perplexity",
    ]
    published = [result("a", 4.0, published_perplexity=2.936, published_change=-8.16)]
    table = tables.perplexity_table(published, None, "SM+G")
    assert column(table, "published perplexity") == [2.936]
    assert column(table, "published change against SM+G (%)") == [-8.16]


@pytest.mark.parametrize(
    ("value", "baseline", "expected"),
    [(3.0, 2.0, 50.0), (1.0, 2.0, -50.0), (None, 2.0, None), (1.0, None, None), (1.0, 0.0, None)],
)
def test_percent_change(value, baseline, expected):
    assert tables.percent_change(value, baseline) == expected


def test_seed_intervals_are_students():
    table = tables.seeds_table({"SM+R": [1.0, 2.0, 3.0], "SM+G": [4.0]})
    (first, second) = table.rows
    # t(0.975; 2 degrees) = 4.302653, s = 1, n = 3
    np.testing.assert_allclose(first[2:5], [2.0, 2 - 2.484138, 2 + 2.484138], rtol=1e-6)
    np.testing.assert_allclose(first[5], math.exp(2.0))
    assert first[:2] == ("SM+R", 3)
    assert second[:3] == ("SM+G", 1, 4.0)
    assert math.isnan(second[3])


def test_entropy_table_has_a_row_a_head():
    table = tables.entropy_table(["a"], [np.array([[1.0, 2.0], [3.0, 4.0]])])
    assert table.rows == (("a", 0, 0, 1.0), ("a", 0, 1, 2.0), ("a", 1, 0, 3.0), ("a", 1, 1, 4.0))


def test_differences_name_every_key_and_nothing_else():
    records = {
        "gelu": make_record({"model.activation": "gelu", "training.seed": 3}),
        "relu": make_record({}),
        "small": make_record({"training.batch_size": 8}),
    }
    table = tables.differences_table(records)
    assert [c.title for c in table.columns] == ["key", "gelu", "relu", "small"]
    assert table.rows == (
        ("model.activation", "gelu", "relu", "relu"),
        ("training.batch_size", "16", "16", "8"),
        ("training.seed", "3", "0", "0"),
    )


def test_of_an_imported_model_only_the_keys_of_the_model_are_compared():
    records = {
        "trained": make_record({"training.seed": 3}),
        "again": make_record({"training.seed": 4}),
        "imported": make_record({"model.activation": "gelu"}, data_fingerprint=UNKNOWN_DATA),
    }
    assert tables.differences_table(records).rows == (
        ("model.activation", "relu", "relu", "gelu"),
        ("training.seed", "3", "4", None),
    )


def test_csv_keeps_full_precision_and_quotes():
    table = Table((Column("run"), Column("x", ".1f")), (('a,"b"\nc', 1 / 3), ("d", None)))
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows == [["run", "x"], ['a,"b"\nc', "0.3333333333333333"], ["d", ""]]


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (None, ".2f", "–"),
        (1234567, ",d", "1,234,567"),
        (-8.163, "+.1f", "−8.2"),
        (8.163, "+.1f", "+8.2"),
        (math.nan, ".2f", "NaN"),
        (-math.inf, ".2f", "−∞"),
        ("-a-", "", "-a-"),
    ],
)
def test_cells_as_the_page_shows_them(value, form, expected):
    assert tables.format_cell(value, form) == expected


@pytest.mark.parametrize(
    ("changes", "notation", "perplexity"),
    [
        ({}, "SM+R", 2.936),
        ({"model.architecture": "gpt_neox"}, "SM+R", 3.736),
        ({"model.architecture": "gpt_neox", "model.context_length": 256}, "SM+G", 3.57),
        ({}, "SM", None),
    ],
)
def test_published_numbers_match_architecture_and_context(changes, notation, perplexity):
    published = find_published(make_config(changes).model, notation)
    assert published.perplexity == perplexity


@pytest.mark.parametrize(
    ("changes", "notation"),
    [
        ({"model.context_length": 256}, "SM+R"),
        ({"model.final_normalization": "none"}, "SM+R"),
        ({"model.qk_normalization": "layernorm"}, "SM+R"),
        ({}, "SM+silu"),
    ],
)
def test_nothing_was_published_for_other_models(changes, notation):
    assert find_published(make_config(changes).model, notation) is None


@pytest.mark.parametrize("notation", ["SM+LN+G", "SM+LN+R", "SM+LN", "SM+G", "SM+R", "SM"])
def test_published_shares_are_those_of_the_published_heatmap(notation):
    shares = find_published(make_config({}).model, notation).head_shares
    entropy_LH = np.array(PUBLISHED["head_entropy_nats"][notation])
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_allclose(shares, head_histogram(entropy_LH, 3.866), atol=0.024)
