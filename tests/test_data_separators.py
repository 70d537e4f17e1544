"""Documents that a marker separates, and the warning where nobody has named the marker."""

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from absl import logging
from data_configs import data_config, write_jsonl

import nfllm.data
from nfllm.data import separators
from nfllm.data.dataset import remarks
from nfllm.data.records import MalformedPolicy
from nfllm.data.text_files import read_file

SEPARATOR = "<|endoftext|>"
STORIES = ["one\ntwo", "drei ü", "", "x" * 50, "日 last"]


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("ending", ["", "\n", f"\n{SEPARATOR}", f"{SEPARATOR}\n"])
def test_a_separated_text_is_split_wherever_reading_stops(size, ending):
    raw = (f"\n{SEPARATOR}\r\n".join(STORIES) + ending).encode()
    file = io.BytesIO(raw)
    found = list(separators.split(lambda _: file.read(size), SEPARATOR.encode(), 1000))
    assert [document.decode() for document in found if document] == [s for s in STORIES if s]


def test_what_is_too_long_between_separators_is_passed_over():
    raw = b"a#" + b"b" * 100 + b"#c#" + b"d" * 11 + b"#" + b"e" * 10
    for size in (1, 5, 1000):
        file = io.BytesIO(raw)
        found = list(separators.split(lambda _, f=file, n=size: f.read(n), b"#", 10))
        assert found == [b"a", None, b"c", None, b"e" * 10]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".parquet"])
def test_separated_documents_of_every_format(tmp_path, suffix):
    text = f"\n{SEPARATOR}\n".join(STORIES)
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        path.write_bytes(parquet_of(text))
    else:
        raw = json.dumps({"text": text}).encode() if suffix == ".jsonl" else text.encode()
        path.write_bytes(gzip.compress(raw) if suffix == ".txt.gz" else raw)
    policy = MalformedPolicy("error")
    found = [record.text for record in read_file(path, None, policy, SEPARATOR)]
    assert [text for text in found if text] == [story for story in STORIES if story]


def parquet_of(text: str) -> bytes:
    file = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), file)
    return file.getvalue().to_pybytes()


def stories(count: int) -> list[str]:
    return [f"story {i}: " + " ".join(f"w{(i * j) % 89}" for j in range(40)) for i in range(count)]


def config_of(tmp_path, **changes):
    values = {"dataset": "text_files", "tokenizer": "bytes", "validation_fraction": 0.3}
    return data_config(tmp_path / "data", **values, **changes)


def test_stories_are_documents_of_their_own(tmp_path):
    """As many as there are, no document holds the marker, and no bytes are lost but it."""
    (tmp_path / "a.txt").write_text(f"\n{SEPARATOR}\n".join(stories(400)) + "\n")
    config = config_of(tmp_path, sources=str(tmp_path), document_separator=SEPARATOR)
    card = nfllm.data.load(config, 16).card
    assert card["documents"] == {"read": 400, "empty": 0, "duplicate": 0}
    assert sum(split["bytes"] for split in card["splits"].values()) == len("".join(stories(400)))
    assert remarks(card) == []


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        (f"a{SEPARATOR}b", SEPARATOR),
        ("a <|im_end|> b", "<|im_end|>"),
        ("a\n</s>\nb", "</s>"),
        ("a\n [SEP] \r\nb", "[SEP]"),
        ("<s>struck</s> out", None),
        ("tokens = ['[SEP]', '<eos>']", None),
    ],
)
def test_usual_markers_are_said(tmp_path, text, marker, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    texts = [*stories(20), text]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    config = config_of(tmp_path, sources=str(path))
    for _ in range(2):  # preparing, and from the cache
        caplog.clear()
        nfllm.data.load(config, 16)
        if marker is None:
            assert not caplog.records
        else:
            assert f"1 of 21 documents hold {marker!r} as ordinary characters" in caplog.text
            assert f"set data.document_separator={marker!r}" in caplog.text
