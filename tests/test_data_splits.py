"""Who trains and who validates: by hash, slice, field or source, without a shared document."""

import math

import numpy as np
import pytest
from data_configs import data_config
from hypothesis import given, settings
from hypothesis import strategies as st

from nfllm.config import ConfigError
from nfllm.data.splits import Assignment, Side, Survey, digest, uniform


def assign(documents, **changes):
    """Sides of (text, fields, is validation) triples or plain texts."""
    survey = Survey(data_config("unused", **changes))
    for document in documents:
        text, fields, validation = (document, {}, False) if isinstance(document, str) else document
        survey.add(text.encode(), fields, validation=validation)
    return survey.assign()


def sides(documents, **changes):
    return [Side(side) for side in assign(documents, **changes).sides]


T, V, E, D = Side.TRAIN, Side.VALIDATION, Side.EMPTY, Side.DUPLICATE
BY_PACKAGE = {"validation_split": "field", "validation_field": "package"}


def packaged(*pairs):
    return [(text, {"package": package}, False) for text, package in pairs]


def test_hash_split_takes_the_configured_share():
    found = np.array(sides([f"text {i}" for i in range(20_000)], validation_fraction=0.1))
    deviation = math.sqrt(20_000 * 0.1 * 0.9)
    assert abs((found == V).sum() - 2000) < 4 * deviation
    assert ((found == V) | (found == T)).all()


def test_hash_split_does_not_depend_on_the_other_documents():
    texts = [f"text {i}" for i in range(200)]
    alone = dict(zip(texts, sides(texts), strict=True))
    backwards = texts[::-1] + ["more"] * 3
    mixed = dict(zip(backwards, sides(backwards), strict=True))
    assert all(alone[text] == mixed[text] for text in texts)


def test_numbers_of_different_purposes_are_independent():
    keys = [digest(f"{i}".encode()) for i in range(20_000)]
    split = np.array([uniform(key, "validation") for key in keys])
    sample = np.array([uniform(key, "tokenizer") for key in keys])
    assert abs(np.corrcoef(split, sample)[0, 1]) < 4 / math.sqrt(len(keys))
    counts, _ = np.histogram(split, bins=10, range=(0, 1))
    assert ((counts - 2000) ** 2 / 2000).sum() < 9 + 4 * math.sqrt(18)


def test_slice_takes_the_last_documents_after_duplicates_are_dropped():
    documents = ["a", "b", "", "a", "c", "d", "b", "b"]
    found = sides(documents, validation_split="slice", validation_fraction=0.5)
    assert found == [T, T, E, D, V, V, D, D]
    assert sides(["a", "b", "c"], validation_split="slice", validation_fraction=0.01) == [T, T, V]


@pytest.mark.parametrize(("fraction", "count"), [(0.07, 7), (0.071, 8), (0.28, 28), (0.01, 1)])
def test_a_share_is_rounded_up_in_decimals(fraction, count):
    documents = [str(index) for index in range(100)]
    found = sides(documents, validation_split="slice", validation_fraction=fraction)
    assert found.count(V) == count


def test_field_split_holds_out_whole_values():
    documents = packaged(("1", "x"), ("2", "y"), ("3", "x"), ("4", "z"))
    assert sides(documents, **BY_PACKAGE, validation_values="x") == [V, T, V, T]
    assert sides(documents, **BY_PACKAGE, validation_values=" z , y") == [T, V, T, V]
    assert assign(documents, **BY_PACKAGE, validation_values="z,y").held_out == ["y", "z"]


@settings(max_examples=40, deadline=None)
@given(values=st.integers(2, 60), fraction=st.floats(0.01, 0.9))
def test_field_split_by_hash_holds_out_the_share_of_values_rounded_up(values, fraction):
    documents = packaged(*((f"{i} {value}", str(value)) for value in range(values) for i in "ab"))
    if math.ceil(values * fraction) == values:
        return
    found = assign(documents, **BY_PACKAGE, validation_fraction=fraction)
    assert len(found.held_out) == math.ceil(values * fraction)
    for side, (_, fields, _) in zip(found.sides, documents, strict=True):
        assert (side == V) == (fields["package"] in found.held_out)


def test_field_split_names_an_unknown_value_and_a_missing_field():
    documents = packaged(("1", "numpy"), ("2", "scipy"))
    with pytest.raises(ConfigError, match=r"names 'nunpy', .* 'package'; did you mean 'numpy'\?"):
        assign(documents, **BY_PACKAGE, validation_values="nunpy")
    with pytest.raises(ConfigError, match=r"no field 'package' .* its fields are path, version"):
        assign([("1", {"version": "1", "path": "a"}, False)], **BY_PACKAGE)


def test_a_copy_in_a_held_out_package_is_not_trained_on():
    documents = packaged(("same", "a"), ("same", "b"), ("1", "a"), ("same", "b"), ("2", "b"))
    assert sides(documents, **BY_PACKAGE, validation_values="b") == [D, V, T, D, V]


def test_a_separate_validation_source_wins_over_training():
    documents = [("x", {}, False), ("y", {}, False), ("x", {}, True), ("z", {}, True)]
    changes = {"validation_split": "separate", "validation_source": "validation", "dataset": "d"}
    found = assign(documents, **changes)
    assert [Side(side) for side in found.sides] == [D, T, V, V]
    assert found.counts() == {"read": 4, "empty": 0, "duplicate": 1}


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.sampled_from(["", *"abcdefgh"]), min_size=1, max_size=40),
    data=st.data(),
    split=st.sampled_from(["hash", "slice", "field", "separate"]),
)
def test_every_text_stays_exactly_once(texts, data, split):
    changes = {
        "hash": {"validation_fraction": 0.5},
        "slice": {"validation_fraction": 0.5},
        "field": {**BY_PACKAGE, "validation_fraction": 0.4},
        "separate": {"validation_source": "validation", "dataset": "d"},
    }[split]
    documents = [
        (
            text,
            {"package": data.draw(st.sampled_from("pqr"))},
            split == "separate" and data.draw(st.booleans()),
        )
        for text in texts
    ]
    try:
        found = assign(documents, **{"validation_split": split, **changes})
    except ConfigError as error:
        assert "no document is left for" in str(error)  # noqa: PT017
        return
    kept = [text for text, side in zip(texts, found.sides, strict=True) if side in (T, V)]
    assert sorted(kept) == sorted(set(texts) - {""})
    assert found.shared_documents() == 0
    assert found.counts()["empty"] == texts.count("")
    assert sum(found.counts().values()) - found.counts()["read"] == len(texts) - len(kept)
    assert found.num_bytes(T) + found.num_bytes(V) == len(kept)


def test_a_separate_source_of_the_same_documents_leaves_none_and_says_what_to_change():
    same = [("a", {}, False), ("a", {}, True)]
    keys = {"validation_split": "separate", "validation_source": "validation", "dataset": "d"}
    with pytest.raises(ConfigError, match=r"no document is left .* let data\.validation_source"):
        assign(same, **keys)


def test_a_document_on_both_sides_is_found():
    digests = digest(b"a") + digest(b"b") + digest(b"a")
    lengths = np.ones(3, np.int64)
    assert Assignment(np.array([T, T, V]), lengths, digests, []).shared_documents() == 1
    assert Assignment(np.array([T, T, D]), lengths, digests, []).shared_documents() == 0


def test_an_empty_split_is_an_error_that_counts():
    with pytest.raises(
        ConfigError, match="left for validation: 3 were read, 1 of them empty and 1"
    ):
        assign(["a", "a", ""], validation_fraction=1e-9)
    with pytest.raises(ConfigError, match="left for training: 1 were read"):
        assign(packaged(("a", "x")), **BY_PACKAGE)
