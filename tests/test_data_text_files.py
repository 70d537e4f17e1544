"""Local files of every format: what is read, and what is said about what cannot be read."""

import gzip
import json
import lzma
import struct
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from data_configs import data_config, write_jsonl
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from nfllm.config import ConfigError
from nfllm.data import text_files, xz, zstd
from nfllm.data.corpora import open_corpus
from nfllm.data.records import MalformedPolicy, MalformedRecordError, Record
from nfllm.data.text_files import find_files, read_file

RECORDS = [
    {"text": "first\nlines\n", "package": "a", "stars": 3, "tags": ["x"]},
    {"text": "naïve ∑ 😀", "package": "b", "stars": 4, "tags": []},
    {"text": "", "package": "c", "stars": 5, "tags": []},
]
EXPECTED = [
    Record(record["text"], {"package": record["package"], "stars": str(record["stars"])})
    for record in RECORDS
]


def read(path, text_field=None, malformed="error"):
    return list(read_file(path, text_field, MalformedPolicy(malformed)))


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    if suffix == ".xz":
        return lzma.compress(data)
    return pyarrow.compress(data, codec="zstd", asbytes=True) if suffix == ".zst" else data


def jsonl(records) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def parquet(records, **columns) -> bytes:
    table = pyarrow.Table.from_pylist(records)
    for name, values in columns.items():
        table = table.append_column(name, values)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize(("kind", "make"), [(".jsonl", jsonl), (".parquet", parquet)])
def test_records_of_every_format_and_compression(tmp_path, kind, make, suffix):
    path = tmp_path / f"data{kind}{suffix}"
    path.write_bytes(compress(make(RECORDS), suffix))
    assert read(path) == EXPECTED
    renamed = [{"content": record["text"], "text2": "no"} for record in RECORDS]
    path.write_bytes(compress(make(renamed), suffix))
    assert [record.text for record in read(path)] == [record["text"] for record in RECORDS]
    assert {record.text for record in read(path, "text2")} == {"no"}


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_streams_of_several_members_are_read_to_the_end(tmp_path, suffix):
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(compress(jsonl(RECORDS[:1]), suffix) + compress(jsonl(RECORDS[1:]), suffix))
    assert read(path) == EXPECTED


@pytest.mark.parametrize("padding", [0, 4, 200_000])
@pytest.mark.parametrize("packed", [2, 3, xz._PACKED_BYTES])
def test_padding_of_xz_streams_is_passed_over(tmp_path, monkeypatch, padding, packed):
    monkeypatch.setattr(xz, "_PACKED_BYTES", packed)
    path = tmp_path / "data.jsonl.xz"
    *lines, last = (jsonl([record]) for record in RECORDS)
    streams = [compress(line, ".xz") for line in (*lines, last.rstrip())]
    path.write_bytes(b"".join(stream + bytes(padding) for stream in streams))
    assert read(path) == EXPECTED


@pytest.mark.parametrize(
    "rest",
    [
        b"X" + compress(jsonl(RECORDS[1:]), ".xz")[1:],
        bytes(4) + b"X" + compress(jsonl(RECORDS[1:]), ".xz")[1:],
        bytes(3) + compress(jsonl(RECORDS[1:]), ".xz"),
        bytes(3),
        b"rest",
        compress(jsonl(RECORDS[1:]), ".xz")[:4],
    ],
)
def test_what_follows_an_xz_stream_and_is_none_is_damage(tmp_path, rest):
    path = tmp_path / "data.jsonl.xz"
    path.write_bytes(compress(jsonl(RECORDS[:1]), ".xz") + rest)
    with pytest.raises(MalformedRecordError, match=r"data\.jsonl\.xz: damaged or truncated"):
        read(path)
    policy = MalformedPolicy("skip")
    assert list(read_file(path, None, policy)) == EXPECTED[:1]
    assert policy.skipped == 1


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".parquet"])
def test_a_truncated_file_is_named_and_what_precedes_is_kept_if_asked(tmp_path, kind, suffix):
    path = tmp_path / f"data{kind}{suffix}"
    make = parquet if kind == ".parquet" else jsonl
    records = [{"text": f"{i} " + "0123456789abcdef" * i} for i in range(800)]
    packed = compress(make(records), suffix)
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(MalformedRecordError, match=rf"data{kind}{suffix}: damaged or truncated"):
        read(path)
    policy = MalformedPolicy("skip")
    found = list(read_file(path, None, policy))
    # The last line before the damage may be torn as well.
    assert policy.skipped in (1, 2)
    if kind == ".jsonl":
        assert 100 < len(found) < 800
        assert [record.text for record in found] == [
            record["text"] for record in records[: len(found)]
        ]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_what_is_not_compressed_at_all_is_named(tmp_path, suffix):
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(jsonl(RECORDS))
    with pytest.raises(MalformedRecordError, match=rf"data\.jsonl{suffix}: damaged or truncated"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # The reason is in the words of Python, which differ between its versions.
        (b'{"text": "a", }', r"line 3: malformed JSON: \w.* column 1[35]\b"),
        (b'{"text": "a", "id": ' + b"1" * 5000 + b"}", r"line 3: malformed JSON: \w.*\b5000\b"),
        (b"{" * 100_000, r"line 3: malformed JSON"),
        (b"[" * 100_000, r"line 3: malformed JSON"),
        (b'["text"]', r"line 3: a JSON object was expected, not list"),
        (b'{"text": "\xff"}', r"line 3: not UTF-8: byte 0xff at 10"),
        (b'{"text": "\\ud800"}', r"line 3: not UTF-8: lone surrogate at character 0 of 'text'"),
        (b'{"text": 5}', r"line 3: field 'text' is of type int, expected text"),
        (b'{"text": null}', r"line 3: field 'text' is of type NoneType, expected text"),
        (
            b'{"body": "a", "id": 1}',
            r"line 3: no field 'text' or 'content'; its fields are 'body', 'id'; set data\.text_f",
        ),
        (b"{}", r"line 3: no field 'text' or 'content'; its fields are none"),
    ],
)
def test_a_malformed_line_is_named_or_skipped_with_a_count(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(RECORDS[:1]) + b"\n" + line + b"\n" + jsonl(RECORDS[1:]))
    with pytest.raises(MalformedRecordError, match=rf"data\.jsonl, {message}") as error:
        read(path)
    assert "data.malformed=skip leaves such records out" in str(error.value)
    policy = MalformedPolicy("skip")
    assert list(read_file(path, None, policy)) == EXPECTED
    assert policy.summary()["malformed"] == 1
    assert "line 3" in policy.summary()["malformed_messages"][0]


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_compressed_file_without_bytes_is_damaged(tmp_path, kind, suffix):
    path = tmp_path / f"a.{kind}{suffix}"
    path.write_bytes(b"")
    with pytest.raises(MalformedRecordError, match="damaged or truncated file: it has no bytes"):
        read(path)


def test_a_missing_text_field_names_the_one_that_was_asked_for(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", RECORDS)
    with pytest.raises(
        MalformedRecordError, match=r"line 1: no field 'body'; its fields are 'pack"
    ):
        read(path, "body")
    (tmp_path / "data.parquet").write_bytes(parquet(RECORDS))
    with pytest.raises(MalformedRecordError, match=r"\.parquet: no field 'body'; its fields are"):
        read(tmp_path / "data.parquet", "body")


def test_only_the_first_messages_are_kept(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x\n" * 50 + jsonl(RECORDS))
    policy = MalformedPolicy("skip")
    assert list(read_file(path, None, policy)) == EXPECTED
    assert policy.skipped == 50
    assert len(policy.messages) == 5


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(parquet(RECORDS)[:-20])
    with pytest.raises(MalformedRecordError, match=r"data\.parquet: damaged or truncated"):
        read(path)


@pytest.mark.parametrize("malformed", ["error", "skip"])
def test_parquet_columns_that_python_cannot_hold_are_left_out(tmp_path, malformed):
    """Fields are kept where their type is plain, also in a dictionary or an extension type."""
    path = tmp_path / "data.parquet"
    plain = {
        "large": pyarrow.array(["a", None, "c"], pyarrow.large_string()),
        "category": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        "half": pyarrow.array(np.float16([0.5, 1.5, 2.5])),
        "flag": pyarrow.array([True, None, False]),
    }
    if hasattr(pyarrow, "json_"):  # from version 19, which also writes views
        plain["view"] = pyarrow.array(["a", "b", "c"], pyarrow.string_view())
        plain["json"] = pyarrow.ExtensionArray.from_storage(
            pyarrow.json_(pyarrow.string()), pyarrow.array(["1", "2", "3"])
        )
    others = {
        "nanoseconds": pyarrow.array([1, 2, 3], pyarrow.timestamp("ns")),
        "far": pyarrow.array([10**8] * 3, pyarrow.int32()).cast(pyarrow.date32()),
        "raw": pyarrow.array([b"\xff"] * 3),
        "text.far": pyarrow.array([10**8] * 3, pyarrow.int32()).cast(pyarrow.date32()),
    }
    path.write_bytes(parquet(RECORDS, **plain, **others))
    kept = [{name: values[row].as_py() for name, values in plain.items()} for row in range(3)]
    assert read(path, malformed=malformed) == [
        Record(
            record.text,
            record.fields | {name: str(value) for name, value in row.items() if value is not None},
        )
        for record, row in zip(EXPECTED, kept, strict=True)
    ]


def test_a_parquet_column_that_holds_no_text_is_named(tmp_path):
    path = tmp_path / "data.parquet"
    nanoseconds = pyarrow.array([1, 2, 3], pyarrow.timestamp("ns"))
    path.write_bytes(parquet(RECORDS, time=nanoseconds))
    with pytest.raises(
        MalformedRecordError,
        match=r"data\.parquet, row 0: field 'time' is of type timestamp\[ns\], expected text",
    ):
        read(path, "time")
    policy = MalformedPolicy("skip")
    assert list(read_file(path, "time", policy)) == []
    assert policy.skipped == 3
    path.write_bytes(parquet([], text=pyarrow.nulls(0)))
    assert read(path) == []


@pytest.mark.parametrize("place", [0.5, 0.0], ids=["second group", "first group"])
def test_damaged_parquet_pages_cost_what_is_left_of_their_row_group(tmp_path, place):
    path = tmp_path / "data.parquet"
    records = [{"text": f"{i} " + "0123456789abcdef" * 50} for i in range(3000)]
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(
        table, path, row_group_size=1000, compression="none", use_dictionary=False
    )
    raw = bytearray(path.read_bytes())
    start = 4 + int(len(raw) * place)
    raw[start : start + 100] = bytes(100) if place == 0 else b"\xff" * 100
    path.write_bytes(raw)
    group = int(3 * place)
    rows = rf"rows \d+ to {group or ''}999 \(row group {group}\)"
    message = rf"data\.parquet: damaged or truncated in {rows}"
    with pytest.raises(MalformedRecordError, match=message):
        read(path)
    policy = MalformedPolicy("skip")
    found = [record.text for record in read_file(path, None, policy)]
    texts = [record["text"] for record in records]
    assert len(found) + policy.skipped == 3000
    assert found[: group * 1000] == texts[: group * 1000]
    assert found[(group - 2) * 1000 :] == texts[(group - 2) * 1000 :]


def parquet_of(raw: list[bytes], **columns: pyarrow.Array) -> bytes:
    """A file with the column `text`, whose bytes nobody checks."""
    text = pyarrow.array(raw, pyarrow.binary()).view(pyarrow.string())
    file = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": text, **columns})
    pyarrow.parquet.write_table(table, file, row_group_size=400)
    return file.getvalue().to_pybytes()


@pytest.mark.parametrize("field", ["text", "note"])
@pytest.mark.parametrize("bad", [[0], [300], [255, 256, 399, 400, 999]])
def test_a_bad_row_costs_one_row_and_is_named(tmp_path, field, bad):
    path = tmp_path / "data.parquet"
    good = [f"document {i}".encode() for i in range(1000)]
    spoilt = [b"caf\xe9" if i in bad else text for i, text in enumerate(good)]
    note = pyarrow.array(spoilt, pyarrow.binary()).view(pyarrow.string())
    path.write_bytes(parquet_of(spoilt if field == "text" else good, note=note))
    with pytest.raises(MalformedRecordError, match=rf"row {bad[0]}, field '{field}': not UTF-8"):
        read(path)
    policy = MalformedPolicy("skip")
    found = [record.text.encode() for record in read_file(path, None, policy)]
    assert found == [text for i, text in enumerate(good) if i not in bad]
    assert policy.skipped == len(bad)
    for row, message in zip(bad, policy.messages, strict=True):
        assert f"row {row}, field '{field}'" in message


def test_a_line_that_no_record_can_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 200)
    path = write_jsonl(tmp_path / "data.jsonl", [RECORDS[0], {"text": "x" * 1000}, *RECORDS[1:]])
    with pytest.raises(MalformedRecordError, match="line 2: longer than 200 bytes"):
        read(path)
    policy = MalformedPolicy("skip")
    assert list(read_file(path, None, policy)) == EXPECTED
    assert policy.skipped == 1


def test_a_line_of_100_megabytes_is_one_document(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    long = "x = 1; " * (100_000_000 // 7)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(jsonl([RECORDS[0], {"text": long}, RECORDS[1]]))
    tracemalloc.start()
    policy = MalformedPolicy("error")
    lengths = [len(record.text) for record in read_file(path, None, policy)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [len(RECORDS[0]["text"]), len(long), len(RECORDS[1]["text"])]
    assert peak < 600e6


def test_a_text_file_becomes_blocks_cut_at_line_ends(tmp_path):
    lines = [f"line {i} naïve ∑\n" for i in range(4000)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines), encoding="utf-8")
    found = read(path)
    assert "".join(record.text for record in found) == "".join(lines)
    assert len(found) == pytest.approx(path.stat().st_size / (16 << 10), abs=1)
    assert all(record.text.endswith("∑\n") for record in found)
    assert [record.fields for record in found[:2]] == [
        {"path": "book.txt", "block": "0"},
        {"path": "book.txt", "block": "1"},
    ]
    path.write_text("short")
    assert read(path) == [Record("short", {"path": "book.txt", "block": "0"})]


@given(
    text=st.text(st.sampled_from("aé∑😀\n"), max_size=120),
    size=st.sampled_from([4, 7, 16]),
)
def test_blocks_never_split_a_character(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "TEXT_BLOCK_BYTES", size)
        found = [record.text for record in read(path)]
    assert "".join(found) == text
    assert all(len(part.encode()) <= 2 * size for part in found)


def test_text_that_is_not_utf8_names_file_and_byte(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"ok\n" * 10_000 + b"caf\xe9 au lait\n")
    message = r"book\.txt, block of \d+ bytes from byte 16386: not UTF-8: byte 0xe9 at 13617"
    with pytest.raises(MalformedRecordError, match=message):
        read(path)
    policy = MalformedPolicy("skip")
    assert [len(record.text) for record in read_file(path, None, policy)] == [16386]
    assert policy.skipped == 1


def test_sources_are_paths_directories_and_globs(tmp_path):
    for name in ("b.jsonl", "a.txt.gz", "sub/c.parquet.zst", "sub/d.json.xz", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def names(sources):
        return [str(path.relative_to(tmp_path)) for path in find_files(sources)]

    assert names(f"{tmp_path}/b.jsonl") == ["b.jsonl"]
    everything = ["a.txt.gz", "b.jsonl", "sub/c.parquet.zst", "sub/d.json.xz"]
    assert names(str(tmp_path)) == everything
    assert names(f"{tmp_path}/sub/*, {tmp_path}/b.*,{tmp_path}/*.gz") == everything
    assert names(f"{tmp_path}/**/*.xz") == ["sub/d.json.xz"]
    for name in ("c[1].jsonl", "c1.jsonl", "c2.jsonl"):
        (tmp_path / name).write_bytes(b"")
    assert names(f"{tmp_path}/c[1].jsonl") == ["c[1].jsonl"]
    assert names(f"{tmp_path}/c[12].jsonl") == ["c1.jsonl", "c2.jsonl"]
    with pytest.raises(ConfigError, match=r"sources names '.*nothing', but there is no such"):
        find_files(f"{tmp_path}/nothing")
    with pytest.raises(ConfigError, match=r"notes\.md, which cannot be read; files must end in"):
        find_files(f"{tmp_path}/notes.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty, which holds no file that ends in"):
        find_files(f"{tmp_path}/empty")


@pytest.mark.parametrize("dataset", ["text_files", "python_source"])
@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_the_key_of_a_source_without_files_is_named(tmp_path, dataset, place):
    (tmp_path / "empty").mkdir()
    for name in ("a.txt", "a.py"):
        (tmp_path / name).write_text("x = 1\n")
    config = data_config(
        tmp_path / "data",
        dataset=dataset,
        sources=str(tmp_path / "a.txt" if dataset == "text_files" else tmp_path),
        validation_split="separate",
        validation_source=str(tmp_path / place),
    )
    with pytest.raises(ConfigError, match=rf"data\.validation_source names '?{tmp_path / place}"):
        open_corpus(config, epath.Path(tmp_path / "data"))


def test_builders_without_a_file_are_an_error(tmp_path):
    from nfllm.data import builders

    with pytest.raises(ConfigError, match=r"no file to read; .* in data\.sources"):
        builders.TextFiles(sources=" , ,", data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"no file to read; .* in data\.sources"):
        builders.PythonSource(roots=[], data_dir=str(tmp_path))


def skippable_zstd(size: int) -> bytes:
    """A frame of RFC 8878, 3.1.2, whose content is not data."""
    return struct.pack("<II", 0x184D2A53, size) + bytes(size)


def gzip_with_header(flags: int, fields: bytes) -> bytes:
    """A member of RFC 1952 whose header has optional fields."""
    plain = gzip.compress(jsonl(RECORDS), mtime=0)
    return plain[:3] + bytes([flags]) + plain[4:10] + fields + plain[10:]


def halves(suffix: str, between: bytes = b"") -> bytes:
    return between.join(compress(jsonl(part), suffix) for part in (RECORDS[:1], RECORDS[1:]))


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [
        (".gz", halves(".gz")),
        (".gz", gzip.compress(b"") + gzip.compress(jsonl(RECORDS)) + bytes(512)),
        (".gz", gzip.compress(jsonl(RECORDS), compresslevel=0)),
        (".gz", gzip_with_header(4, struct.pack("<H", 6) + b"BC\2\0\0\0")),
        (".gz", gzip_with_header(8 | 16, b"name\0comment\0")),
        (".zst", halves(".zst")),
        (".zst", skippable_zstd(17) + compress(jsonl(RECORDS), ".zst")),
        (".zst", halves(".zst", skippable_zstd(0))),
        (".zst", compress(jsonl(RECORDS), ".zst") + skippable_zstd(300_000)),
        (".zst", compress(b"", ".zst") + compress(jsonl(RECORDS), ".zst")),
        (".xz", halves(".xz", bytes(8))),
        (".xz", lzma.compress(jsonl(RECORDS), check=lzma.CHECK_NONE)),
        (".xz", lzma.compress(jsonl(RECORDS), check=lzma.CHECK_SHA256)),
        (".xz", lzma.compress(jsonl(RECORDS), format=lzma.FORMAT_ALONE)),
    ],
)
def test_unusual_compression_that_is_valid(tmp_path, suffix, packed):
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(packed)
    assert read(path) == EXPECTED


def long_zstd(text: bytes) -> bytes:
    """A frame of raw blocks whose header asks for a window of 2 GiB, as `zstd --long=31` does."""
    blocks = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    packed = b"\x28\xb5\x2f\xfd" + bytes([0, 21 << 3])
    for number, block in enumerate(blocks):
        packed += ((number == len(blocks) - 1) | len(block) << 3).to_bytes(3, "little") + block
    return packed


@pytest.mark.parametrize(
    ("header", "window"),
    [
        ([0x00, 17 << 3 | 3], (1 << 27) + 3 * (1 << 24)),
        ([0x20, 200], 200),  # a single segment: its content is the window
        ([0x60, 0x00, 0x01], 256 + 256),
        ([0xA0, 0x00, 0x00, 0x00, 0x10], 1 << 28),
        ([0xE0, 0, 0, 0, 0, 1, 0, 0, 0], 1 << 32),
        ([0xA3, 9, 9, 9, 9, 0x00, 0x00, 0x00, 0x10], 1 << 28),  # after a dictionary's number
        ([0xA1, 9, 0x00, 0x00, 0x00, 0x10], 1 << 28),
    ],
)
def test_the_window_of_a_zstd_frame(tmp_path, header, window):
    """By hand from RFC 8878, section 3.1.1."""
    path = tmp_path / "data.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(header) + bytes(20))
    assert zstd.window(path) == window


def test_a_zstd_window_that_arrow_does_not_allow(tmp_path, monkeypatch):
    path = tmp_path / "data.jsonl.zst"
    path.write_bytes(long_zstd(jsonl(RECORDS)))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(OSError, match=r"window of 2048 MiB \(zstd --long\).*pip install zstandard"):
        read(path)
    monkeypatch.undo()
    pytest.importorskip("zstandard")
    assert read(path) == EXPECTED
    usual = compress(jsonl(RECORDS[1:]), ".zst")
    path.write_bytes(long_zstd(jsonl(RECORDS[:1])) + skippable_zstd(9) + usual)
    assert read(path) == EXPECTED
    path.write_bytes(long_zstd(jsonl(RECORDS))[:-5])
    with pytest.raises(MalformedRecordError, match=r"damaged or truncated.* frame has no end"):
        read(path)
    path.write_bytes(long_zstd(jsonl(RECORDS)) + b"garbage")
    with pytest.raises(MalformedRecordError, match="damaged or truncated"):
        read(path)
