"""Corpora by name: local files, prepared TFDS datasets, CodeParrot; from files to a dataset."""

import os
import re
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from data_configs import data_config, words, write_jsonl
from etils import epath

import nfllm.data
from nfllm.config import ConfigError
from nfllm.data import corpora, python_files
from nfllm.data.corpora import open_corpus
from nfllm.data.records import MalformedRecordError

FIXTURES = Path(__file__).parent / "tfds"
# What TensorFlow 2.21 and TFDS 4.9.10 read from the recorded files.
NOTES = {"train": [6, 5, 4, 0, 3, 1, 2], "validation": [9, 8, 7], "train[2:5]": [4, 0, 3]}


def note(number: int) -> str:
    return f"note {number}: " + "naïve ∑ " * number


def documents(config):
    corpus = open_corpus(config, epath.Path(config.data_dir))
    corpus.prepare(progress=False)
    return list(corpus.documents()), corpus


def validation_texts(dataset):
    """Texts of the validation split, read back from its packed windows of one token."""
    ids = dataset.validation.gather(np.arange(len(dataset.validation))).ravel()
    return dataset.tokenizer.decode(ids).split("<|endoftext|>")[:-1]


def test_standard_library_is_its_files_without_tests_and_generated_ones(tmp_path):
    found, corpus = documents(data_config(tmp_path))
    root = python_files.standard_library()
    by_path = {record.fields["path"]: record.text for record, _ in found}
    assert len(by_path) == len(found) == len(corpus)
    assert 300 < len(found) < 1000
    for path in ("json/decoder.py", "asyncio/tasks.py", "argparse.py"):
        assert by_path[path].encode() == (root / path).read_bytes()
    for path in by_path:
        assert not any(
            part.startswith(("test", "site-packages", "encodings", "config-", "_sysconfigdata"))
            for part in path.removesuffix(".py").split("/")
        )
    assert {record.fields["package"] for record, _ in found} > {"json", "asyncio", "argparse"}
    assert corpus.card()["licences"]["of_dataset"] == ["PSF-2.0"]
    assert "tensorflow" not in sys.modules


def test_python_source_reads_every_file_below_its_roots(tmp_path):
    names = ("one/a.py", "one/sub/b.py", "two/c.py", "two/c.txt", "two/.hidden/d.py")
    for name in (*names, "one/__editable___nfllm_0_1_0_finder.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "two" / "__init__.py").write_text("")
    config = data_config(
        tmp_path / "cache", dataset="python_source", sources=f"{tmp_path}/o*,{tmp_path}/two"
    )
    found, _ = documents(config)
    assert [
        (record.text, record.fields["path"], record.fields["package"]) for record, _ in found
    ] == [
        ("# one/a.py", "a.py", "a"),
        ("# one/sub/b.py", "sub/b.py", "sub"),
        ("", "two/__init__.py", "two"),
        ("# two/c.py", "two/c.py", "two"),
    ]


def test_a_root_without_python_files_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    config = data_config(tmp_path, dataset="python_source", sources=f"{tmp_path}/empty")
    with pytest.raises(ConfigError, match=r"data\.sources names .*empty, which has no Python file"):
        open_corpus(config, epath.Path(tmp_path))
    config = data_config(tmp_path, dataset="python_source", sources=f"{tmp_path}/missing")
    with pytest.raises(ConfigError, match="missing, which is not a directory"):
        open_corpus(config, epath.Path(tmp_path))


def test_a_source_beside_a_directory_is_not_left_out_unseen(tmp_path):
    """A misspelt name, a glob without a directory, a file; a glob may match files as well."""
    for name in ("package/a.py", "pack.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# a")
    for other in ("pakage", "pak*", "p*.py", "pack.py"):
        sources = f"{tmp_path}/package,{tmp_path}/{other}"
        config = data_config(tmp_path / "cache", dataset="python_source", sources=sources)
        with pytest.raises(ConfigError, match=rf"{re.escape(other)}, which is not a directory"):
            open_corpus(config, epath.Path(tmp_path))
    config = data_config(tmp_path / "cache", dataset="python_source", sources=f"{tmp_path}/p*")
    found, _ = documents(config)
    assert [record.fields["path"] for record, _ in found] == ["a.py"]


def test_python_that_is_not_utf8_is_named_or_skipped(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"x = '\xe9'")
    (tmp_path / "good.py").write_text("x = 1")
    changes = {"dataset": "python_source", "sources": str(tmp_path)}
    with pytest.raises(MalformedRecordError, match=r"bad\.py: not UTF-8: byte 0xe9 at 5"):
        documents(data_config(tmp_path / "cache", **changes))
    found, corpus = documents(data_config(tmp_path / "cache", **changes, malformed="skip"))
    assert [record.text for record, _ in found] == ["x = 1"]
    assert corpus.card()["malformed"] == 1
    assert "bad.py" in corpus.card()["malformed_messages"][0]


def test_text_files_with_everything_that_is_left_out(tmp_path):
    records = [{"text": words(i), "license": "mit" if i % 3 else "bsd"} for i in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", [*records, {"text": ""}, records[4], {"text": ""}])
    path.write_text(path.read_text() + "no json\n")
    config = data_config(
        tmp_path,
        dataset="text_files",
        sources=str(path),
        malformed="skip",
        tokenizer="bytes",
        validation_split="slice",
        validation_fraction=0.1,
    )
    dataset = nfllm.data.load(config, 1)
    assert validation_texts(dataset) == [record["text"] for record in records[-3:]]
    card = dataset.card
    assert card["documents"] == {"read": 33, "empty": 2, "duplicate": 1}
    assert card["malformed"] == 1
    assert card["licences"]["of_documents"] == {"mit": 21, "bsd": 10}
    assert card["splits"]["train"]["documents"] == 27
    assert card["splits"]["train"]["tokens"] == sum(len(r["text"]) for r in records[:27])
    assert card["windows"]["train"] == {
        "count": card["splits"]["train"]["tokens"] + 27,
        "tokens_kept": 1.0,
    }


def test_files_without_a_document_are_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    config = data_config(tmp_path, dataset="text_files", sources=f"{tmp_path}/a.jsonl")
    with pytest.raises(MalformedRecordError, match=r"no document in 1 files from .*a\.jsonl on"):
        documents(config)


def test_whole_packages_are_held_out(tmp_path):
    records = [{"content": words(i), "package": f"p{i % 5}"} for i in range(50)]
    config = data_config(
        tmp_path,
        dataset="text_files",
        sources=str(write_jsonl(tmp_path / "a.jsonl", records)),
        tokenizer="bytes",
        validation_split="field",
        validation_field="package",
        validation_values="p3,p1",
    )
    dataset = nfllm.data.load(config, 1)
    assert validation_texts(dataset) == [
        record["content"] for record in records if record["package"] in ("p1", "p3")
    ]
    assert dataset.card["held_out"] == {"field": "package", "values": ["p1", "p3"]}


def test_local_files_can_have_their_own_validation_files(tmp_path):
    train = [{"text": words(i)} for i in range(20)]
    validation = [{"text": words(i)} for i in (100, 3, 101)]
    config = data_config(
        tmp_path,
        dataset="text_files",
        sources=str(write_jsonl(tmp_path / "train.jsonl", train)),
        tokenizer="bytes",
        validation_split="separate",
        validation_source=str(write_jsonl(tmp_path / "validation.jsonl", validation)),
    )
    dataset = nfllm.data.load(config, 1)
    assert validation_texts(dataset) == [record["text"] for record in validation]
    assert [source.split(" of ")[1] for source in dataset.card["sources"]] == [
        config.sources,
        config.validation_source,
    ]
    assert dataset.card["splits"]["train"]["documents"] == 19
    assert dataset.card["documents"]["duplicate"] == 1


def test_an_edited_source_file_is_prepared_anew(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": words(i)} for i in range(60)])
    config = data_config(tmp_path, dataset="text_files", sources=str(path), tokenizer="bytes")
    before = nfllm.data.load(config, 8)
    assert nfllm.data.load(config, 8).fingerprint == before.fingerprint
    path.write_text(path.read_text().replace("w7_0 ", "w7_X "))
    after = nfllm.data.load(config, 8)
    assert after.fingerprint != before.fingerprint
    assert after.directory != before.directory


def test_a_slice_of_the_split_is_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": words(i)} for i in range(60)])
    config = data_config(tmp_path, dataset="text_files", sources=str(path), split="train[10:30]")
    found, corpus = documents(config)
    assert [record.text for record, _ in found] == [words(i) for i in range(10, 30)]
    assert len(corpus) == 20


@pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
@pytest.mark.parametrize("split", ["train", "train[2:5]"])
def test_prepared_datasets_of_other_formats_equal_what_tensorflow_reads(kind, split):
    config = data_config(
        FIXTURES / kind,
        dataset="tiny_notes",
        split=split,
        validation_split="separate",
        validation_source="validation",
    )
    found, corpus = documents(config)
    expected = [(n, False) for n in NOTES[split]] + [(n, True) for n in NOTES["validation"]]
    assert [(record.text, validation) for record, validation in found] == [
        (note(n), validation) for n, validation in expected
    ]
    assert [record.fields for record, _ in found] == [
        {"author": "ab"[n % 2], "stars": str(n * n)} for n, _ in expected
    ]
    assert corpus.card()["licences"]["of_dataset"] == ["CC0-1.0"]
    assert corpus.card()["sources"][0] == f"tiny_notes/1.2.0 {split}"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("tfrecord", lambda raw: raw[: -16 - _last_length(raw)], "ends there, and should have 4"),
        ("tfrecord", lambda raw: b"", "at record 0 .* ends there"),
        ("parquet", lambda raw: b"", "at record 0 .*-00000-of-00002: "),
        ("parquet", lambda raw: raw[:-1], "at record 0 .*-00000-of-00002: "),
        (
            "parquet",
            lambda raw: raw[:30] + b"\xff" * 4 + raw[34:],
            "at record 0 .*-00000-of-00002: ",
        ),
    ],
)
def test_a_damaged_file_of_a_prepared_dataset_is_named(tmp_path, kind, damage, message):
    shutil.copytree(FIXTURES / kind, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob("*train*-00000-of-00002")
    path.write_bytes(damage(path.read_bytes()))
    config = data_config(
        tmp_path, dataset="tiny_notes", validation_split="separate", validation_source="validation"
    )
    with pytest.raises(MalformedRecordError, match=rf"is damaged .*{message}"):
        documents(config)


def test_a_missing_file_of_a_prepared_dataset_is_named(tmp_path):
    shutil.copytree(FIXTURES / "tfrecord", tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob("*train*-00000-of-00002")
    config = data_config(tmp_path, dataset="tiny_notes")
    corpus = open_corpus(config, epath.Path(config.data_dir))
    path.unlink()
    with pytest.raises(MalformedRecordError, match=r"at record 0 .*-00000-of-00002 is missing"):
        list(corpus.documents())
    with pytest.raises(ConfigError, match=r"its file .*-00000-of-00002 is missing; remove that"):
        documents(config)


def _last_length(raw: bytes) -> int:
    """Bytes of data in the last record of a TFRecord file."""
    place = 0
    while True:
        (length,) = struct.unpack("<Q", raw[place : place + 8])
        place += 16 + length
        if place == len(raw):
            return length


def test_a_prepared_dataset_that_is_replaced_at_once_is_noticed(tmp_path):
    shutil.copytree(FIXTURES / "tfrecord", tmp_path, dirs_exist_ok=True)
    config = data_config(
        tmp_path, dataset="tiny_notes", validation_split="separate", validation_source="validation"
    )
    before = documents(config)[1].identity
    (path,) = tmp_path.rglob("*train*-00000-of-00002")
    times = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps the time
    assert documents(config)[1].identity != before


def test_a_prepared_dataset_is_found_by_name_configuration_and_version(tmp_path):
    recorded = FIXTURES / "tfrecord" / "tiny_notes" / "1.2.0"
    for place in ("plain/1.9.0", "plain/1.10.0", "one/c/1.0.0", "two/c/1.0.0", "two/d/1.0.0"):
        shutil.copytree(recorded, tmp_path / place)

    def source(name):
        path = documents(data_config(tmp_path, dataset=name))[1]._parts[0].builder.data_path
        return str(path.relative_to(tmp_path))

    assert source("plain") == "plain/1.10.0"
    assert source("plain:1.9.0") == "plain/1.9.0"
    assert source("one") == "one/c/1.0.0"
    assert source("two/d") == "two/d/1.0.0"
    with pytest.raises(ConfigError, match="'two' has several configurations: two/c, two/d; name"):
        source("two")
    with pytest.raises(ConfigError, match=r"neither .* choose from codeparrot, one, plain, "):
        source("plain:2.0.0")


def test_an_unknown_dataset_or_split_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"'python_stdlb' is neither .* did you mean 'python_std"):
        documents(data_config(tmp_path, dataset="python_stdlb"))
    with pytest.raises(ConfigError, match=r"'tiny_note' is neither .* did you mean 'tiny_notes'"):
        documents(data_config(FIXTURES / "tfrecord", dataset="tiny_note"))
    with pytest.raises(ConfigError, match=r"has no split 'valid': .*choose from train, validation"):
        documents(data_config(FIXTURES / "tfrecord", dataset="tiny_notes", split="valid"))
    with pytest.raises(ConfigError, match="no field 'body'; its fields are 'author', 'content'"):
        documents(data_config(FIXTURES / "tfrecord", dataset="tiny_notes", text_field="body"))
    with pytest.raises(ConfigError, match="field 'stars' is of type int, expected text"):
        documents(data_config(FIXTURES / "tfrecord", dataset="tiny_notes", text_field="stars"))


def codeparrot_config(tmp_path, **changes):
    return data_config(
        tmp_path,
        dataset="codeparrot",
        validation_split="separate",
        validation_source="validation",
        **changes,
    )


def test_codeparrot_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'nfllm\[codeparrot\]'"):
        open_corpus(codeparrot_config(tmp_path), epath.Path(tmp_path))


def test_codeparrot_reads_both_repositories_and_prepares_each_once(tmp_path, monkeypatch):
    """The hub is replaced by local builders; what is asked of it is recorded."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import conversion_utils

    asked = []

    def hub(*, hf_repo_id, file_format, data_dir):
        asked.append((hf_repo_id, file_format))

        class Hub(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = conversion_utils.to_tfds_name(hf_repo_id)
            VERSION = tfds.core.Version("0.0.0")

            def _info(self):
                text = tfds.features.Text()
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict({"content": text, "license": text}),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                valid = hf_repo_id.endswith("valid")
                return {"validation" if valid else "train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(3):
                    yield i, {"content": f"{hf_repo_id} {i}", "license": "mit"}

        return Hub(data_dir=data_dir, file_format=file_format)

    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setattr(tfds.dataset_builders, "HuggingfaceDatasetBuilder", hub)
    config = codeparrot_config(tmp_path, tokenizer="bytes")
    first = nfllm.data.load(config, 1)
    train, valid = (f"huggingface-course/codeparrot-ds-{part}" for part in ("train", "valid"))
    assert asked == [(train, "array_record"), (valid, "array_record")]
    found, corpus = documents(config)
    assert [(record.text, validation) for record, validation in found] == [
        *((f"{train} {i}", False) for i in range(3)),
        *((f"{valid} {i}", True) for i in range(3)),
    ]
    assert corpus.card()["licences"]["of_documents"] == {"mit": 6}
    part, _ = documents(codeparrot_config(tmp_path, split="train[1:]"))
    assert [record for record, _ in part] == [record for record, _ in found[1:]]
    assert nfllm.data.load(config, 1).directory == first.directory
    assert len(asked) == 2

    # The tokens are enough: text that was removed to save space is not written again.
    shutil.rmtree(tmp_path / "huggingface_course__codeparrot_ds_train")
    assert nfllm.data.load(config, 1).directory == first.directory
    assert not (tmp_path / "huggingface_course__codeparrot_ds_train").exists()


def test_default_directory_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert str(corpora.default_data_dir()) == "/scratch/cache/nfllm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(corpora.default_data_dir()) == str(tmp_path / ".cache" / "nfllm")
