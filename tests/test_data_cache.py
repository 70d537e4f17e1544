"""The cache of tokens: complete or absent, checked, shared by processes, local or remote."""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import object_storage
import pytest
from data_configs import data_config, words, write_jsonl
from etils import epath
from trainer import TIMEOUT_SECONDS

import nfllm.data
from nfllm.config import ConfigError
from nfllm.data import cache, prepare
from nfllm.data.corpora import open_corpus
from nfllm.data.python_files import standard_library
from nfllm.data.records import MalformedRecordError
from nfllm.data.tokenizer import bytes_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    return write_jsonl(directory / "a.jsonl", [{"text": words(i)} for i in range(80)])


def config_of(source, data_dir, **changes):
    by_hash = changes.get("validation_split", "hash") == "hash"
    changes = {"validation_fraction": 0.2, **changes} if by_hash else changes
    changes = {"tokenizer": "bytes", **changes}
    return data_config(data_dir, dataset="text_files", sources=str(source), **changes)


def files_below(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_the_second_load_reads_no_text(source, tmp_path, monkeypatch):
    config = config_of(source, tmp_path)
    first = nfllm.data.load(config, 16)

    def fail(*arguments, **options):
        raise AssertionError("prepared again")

    monkeypatch.setattr(prepare, "prepare", fail)
    second = nfllm.data.load(config, 16)
    assert second.fingerprint == first.fingerprint
    assert second.card == first.card
    every = np.arange(len(first.train))
    assert np.array_equal(second.train.gather(every), first.train.gather(every))
    assert nfllm.data.load(config, 32).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["train.tokens", "manifest.json"])
def test_a_directory_in_place_of_a_file_is_made_anew(source, tmp_path, name):
    config = config_of(source, tmp_path)
    first = nfllm.data.load(config, 16)
    path = Path(first.directory) / name
    path.unlink()
    path.mkdir()
    assert nfllm.data.load(config, 16).fingerprint == first.fingerprint
    assert path.is_file()


def test_names_that_are_no_path_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.data_dir is empty"):
        nfllm.data.load(config_of(source, ""), 16)
    with pytest.raises(ConfigError, match=r"data\.tokenizer='.*' is neither a file nor a built-in"):
        nfllm.data.load(config_of(source, tmp_path, tokenizer=str(tmp_path)), 16)


@pytest.mark.parametrize("name", ["train.tokens", "train.offsets", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_cache_that_does_not_match_its_marker_is_made_anew(
    source, tmp_path, caplog, name, damage
):
    config = config_of(source, tmp_path)
    first = nfllm.data.load(config, 16)
    path = Path(first.directory) / name
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    elif damage == "truncate":
        path.write_bytes(good[:-2])
    else:
        path.unlink()
    again = nfllm.data.load(config, 16)
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == good
    assert f"{name} does not match manifest.json" in caplog.text
    assert "is prepared again" in caplog.text
    assert len(list((tmp_path / "tokens").iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "3", "a changed count"])
def test_a_damaged_marker_is_made_anew(source, tmp_path, caplog, damage):
    config = config_of(source, tmp_path)
    first = nfllm.data.load(config, 16)
    marker = Path(first.directory) / "manifest.json"
    good = marker.read_text()
    changed = good.replace('"read": 80', '"read": 81')
    assert changed != good
    marker.write_text(changed if damage == "a changed count" else damage)
    assert nfllm.data.load(config, 16).fingerprint == first.fingerprint
    assert marker.read_text() == good
    assert "is damaged" in caplog.text


def test_fingerprints_change_with_what_they_cover_and_with_nothing_else(source, tmp_path):
    def fingerprint(directory="a", context_length=16, source=source, **changes):
        config = config_of(source, tmp_path / directory, **changes)
        return nfllm.data.load(config, context_length).fingerprint

    base = fingerprint()
    assert fingerprint(directory="b") == base
    assert fingerprint(mask_end_of_text=True) == base
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    assert fingerprint(source=copy) == base
    copy.write_bytes(source.read_bytes().replace(b"w9_3 ", b"w9_4 "))
    others = [
        fingerprint(source=copy),
        fingerprint(context_length=8),
        fingerprint(window="documents"),
        fingerprint(tokenizer="bpe", vocab_size=300),
        fingerprint(tokenizer="bpe", vocab_size=310),
        fingerprint(validation_fraction=0.5),
        fingerprint(validation_split="slice"),
    ]
    assert len({base, *others}) == len(others) + 1


def test_other_ids_of_the_same_texts_have_another_fingerprint(source, tmp_path, monkeypatch):
    """As when two hosts have different versions of the encoder."""
    first = nfllm.data.load(config_of(source, tmp_path / "a"), 16)
    encode = nfllm.data.Tokenizer.encode_batch
    monkeypatch.setattr(
        nfllm.data.Tokenizer,
        "encode_batch",
        lambda self, texts: [
            np.where(ids == ord("w"), ord("v"), ids) for ids in encode(self, texts)
        ],
    )
    second = nfllm.data.load(config_of(source, tmp_path / "b"), 16)
    assert second.card["splits"] == first.card["splits"]
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert second.fingerprint != first.fingerprint


def test_a_tokenizer_file_can_be_used(source, tmp_path):
    made = nfllm.data.load(config_of(source, tmp_path, tokenizer="bpe", vocab_size=300), 16)
    made.tokenizer.save(tmp_path / "mine.json")
    config = config_of(source, tmp_path, tokenizer=str(tmp_path / "mine.json"))
    loaded = nfllm.data.load(config, 16)
    every = np.arange(len(made.train))
    assert np.array_equal(loaded.train.gather(every), made.train.gather(every))
    assert loaded.fingerprint == made.fingerprint
    assert loaded.directory != made.directory


def test_ids_beyond_16_bits_reach_the_batch(source, tmp_path):
    # A byte-level tokenizer whose byte b has the id 70,000 + b.
    definition = json.loads(bytes_tokenizer()._backend.to_str())
    vocabulary = definition["model"]["vocab"]
    definition["model"]["vocab"] = {
        **{name: 70_000 + byte for name, byte in vocabulary.items()},
        **{f"unused{i}": i for i in range(70_000)},
    }
    definition["added_tokens"][0]["id"] = 70_256
    (tmp_path / "wide.json").write_text(json.dumps(definition))
    wide = nfllm.data.load(config_of(source, tmp_path, tokenizer=str(tmp_path / "wide.json")), 16)
    narrow = nfllm.data.load(config_of(source, tmp_path), 16)
    assert wide.tokenizer.vocab_size == 70_257
    every = np.arange(len(narrow.train))
    assert np.array_equal(wide.train.gather(every), narrow.train.gather(every) + 70_000)


def test_a_tokenizer_that_is_none_is_named(source, tmp_path):
    with pytest.raises(ConfigError, match=r"'bppe' is neither a file .* did you mean 'bpe'\?"):
        nfllm.data.load(config_of(source, tmp_path, tokenizer="bppe"), 16)
    with pytest.raises(ConfigError, match=r"data\.tokenizer: .*a\.jsonl is not a Hugging Face"):
        nfllm.data.load(config_of(source, tmp_path, tokenizer=str(source)), 16)


def test_a_corpus_too_small_for_its_vocabulary_is_told(source, tmp_path, caplog):
    config = config_of(source, tmp_path, tokenizer="bpe", vocab_size=50_000)
    dataset = nfllm.data.load(config, 16)
    size = dataset.tokenizer.vocab_size
    assert 257 < size < 50_000
    assert f"too small for data.vocab_size=50000: the tokenizer has {size} tokens" in caplog.text
    assert dataset.card["tokenizer"]["vocab_size"] == size


def test_a_split_without_a_window_is_an_error(source, tmp_path):
    with pytest.raises(ConfigError, match=r"train split has no window of model\.context_length=99"):
        nfllm.data.load(config_of(source, tmp_path), 999_999)
    with pytest.raises(ConfigError, match=r"'documents'\); .* set data.window to 'packed', or"):
        nfllm.data.load(config_of(source, tmp_path, window="documents"), 5000)


@pytest.mark.parametrize("part", ["train[:0]", "train[2:1]", "train[60%:40%]"])
@pytest.mark.parametrize("key", ["split", "validation_source"])
def test_a_slice_without_a_document_is_an_error(tmp_path, key, part):
    shutil.copytree(Path(__file__).parent / "tfds" / "tfrecord", tmp_path, dirs_exist_ok=True)
    changes = {"validation_source": "validation", key: part}
    config = data_config(
        tmp_path, dataset="tiny_notes", validation_split="separate", tokenizer="bytes", **changes
    )
    message = rf"{re.escape(repr(part))} holds no document; set .*data\.{key}\b"
    with pytest.raises(ConfigError, match=message):
        nfllm.data.load(config, 1)


def test_a_slice_of_local_files_without_a_document_is_an_error(source, tmp_path):
    with pytest.raises(ConfigError, match=r"'train\[:0\]' holds no document; set data\.split"):
        nfllm.data.load(config_of(source, tmp_path, split="train[:0]"), 16)


def test_what_fails_half_way_leaves_nothing(source, tmp_path, monkeypatch):
    config = config_of(source, tmp_path)

    def fail(*arguments):
        assert any(name.endswith("train.tokens") for name in files_below(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "_batches", fail)
    with pytest.raises(KeyboardInterrupt):
        nfllm.data.load(config, 16)
    assert not any(name.startswith("tokens") for name in files_below(tmp_path))
    assert list((tmp_path / "tokens").iterdir()) == []


def test_text_that_changes_between_readings_is_noticed(source, tmp_path, monkeypatch):
    write, reading = prepare._write_tokens, prepare.Corpus.documents

    def other(self):
        for record, validation in reading(self):
            yield record._replace(text=record.text.replace("w5_0", "w5_9")), validation

    def write_other(*arguments):
        monkeypatch.setattr(prepare.Corpus, "documents", other)
        return write(*arguments)

    monkeypatch.setattr(prepare, "_write_tokens", write_other)
    with pytest.raises(
        MalformedRecordError, match="document 5 changed while the corpus was being read"
    ):
        nfllm.data.load(config_of(source, tmp_path), 16)


def test_a_shared_document_stops_the_preparation(source, tmp_path, monkeypatch):
    monkeypatch.setattr("nfllm.data.splits.Assignment.shared_documents", lambda self: 3)
    with pytest.raises(RuntimeError, match="3 validation documents occur in the training split"):
        nfllm.data.load(config_of(source, tmp_path), 16)


def test_the_tokenizer_is_trained_on_a_sample_of_the_training_documents(
    source, tmp_path, monkeypatch
):
    seen = []

    def record(texts, vocab_size):
        seen.append(list(texts))
        return nfllm.data.tokenizer.bytes_tokenizer()

    monkeypatch.setattr(prepare, "train_bpe", record)
    config = config_of(source, tmp_path / "a", tokenizer="bpe")
    dataset = nfllm.data.load(config, 1)
    ids = dataset.train.gather(np.arange(len(dataset.train))).ravel()
    training = dataset.tokenizer.decode(ids).split("<|endoftext|>")[:-1]
    assert seen == [training]
    monkeypatch.setattr(prepare, "_TOKENIZER_BYTES", sum(map(len, training)) // 2)
    nfllm.data.load(config_of(source, tmp_path / "b", tokenizer="bpe"), 1)
    assert set(seen[1]) < set(training)
    assert len(training) // 4 < len(seen[1]) < 3 * len(training) // 4


SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from data_configs import data_config
import nfllm.data, nfllm.data.builders
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
config = data_config(sys.argv[1], dataset="python_source", sources={roots!r}, vocab_size=400)
print(nfllm.data.load(config, 64).fingerprint)
"""


def test_processes_that_prepare_at_once_all_succeed(tmp_path):
    roots = ",".join(str(standard_library() / name) for name in ("json", "email"))
    script = SCRIPT.format(paths=[str(Path(__file__).parent)], roots=roots)
    ready = [tmp_path / f"ready{i}" for i in range(3)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "data"), str(flag), str(tmp_path / "go")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for flag in ready
    ]
    try:
        while not all(flag.exists() for flag in ready):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        (tmp_path / "go").touch()
        results = [process.communicate(timeout=TIMEOUT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({fingerprint for fingerprint, _ in results}) == 1
    names = files_below(tmp_path / "data")
    assert sum(name.endswith("manifest.json") for name in names) == 1
    assert sum(name.endswith("dataset_info.json") for name in names) == 1
    assert not any(part.startswith(".") for name in names for part in name.split("/"))


def test_text_that_another_process_prepares_in_the_meantime_is_read(source, tmp_path):
    """Between opening the corpus and preparing it, one part or both."""
    config = config_of(
        source,
        tmp_path,
        validation_split="separate",
        validation_source=str(source),
        window="packed",
    )
    slow = open_corpus(config, epath.Path(tmp_path))
    open_corpus(config, epath.Path(tmp_path)).prepare(progress=False)
    slow.prepare(progress=False)
    assert [held_out for _, held_out in slow.documents()] == [False] * 80 + [True] * 80


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_stored_text_that_is_damaged_is_named(source, tmp_path, damage):
    """It is read again where the tokens have to be made anew."""
    nfllm.data.load(config_of(source, tmp_path), 16)
    (path,) = tmp_path.glob("text_files/*/*/*.array_record*")
    good = path.read_bytes()
    path.write_bytes(
        {
            "flip": good[: len(good) // 2]
            + bytes([good[len(good) // 2] ^ 0xFF])
            + good[1 + len(good) // 2 :],
            "truncate": good[: len(good) // 2],
        }.get(damage, b"")
    )
    if damage == "remove":
        path.unlink()
    config = config_of(source, tmp_path, validation_fraction=0.3)
    with pytest.raises(
        MalformedRecordError, match=r"is damaged at record 0 or after it .*remove that"
    ):
        nfllm.data.load(config, 16)
    shutil.rmtree(path.parent)
    assert nfllm.data.load(config, 16).card["documents"]["read"] == 80


def test_the_card_has_the_sources_as_they_are_named_now(source, tmp_path):
    nfllm.data.load(config_of(source, tmp_path), 16)
    same = nfllm.data.load(config_of(f"{source.parent}/a*.jsonl", tmp_path), 16)
    assert same.card["sources"][0].endswith(f"train of {source.parent}/a*.jsonl")


def test_a_directory_that_another_process_completes_first_is_kept(source, tmp_path):
    first = nfllm.data.load(config_of(source, tmp_path), 16)
    marker = Path(first.directory) / "manifest.json"
    before = marker.stat().st_mtime_ns, marker.stat().st_ino
    with cache.staged(first.directory) as staging:
        (staging / "other").write_text("x")
        cache.write_manifest(staging, {})
    assert (marker.stat().st_mtime_ns, marker.stat().st_ino) == before
    assert len(list((tmp_path / "tokens").iterdir())) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o007, 0o770)])
def test_other_users_can_read_tokens_as_far_as_the_umask_lets_them(source, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        dataset = nfllm.data.load(config_of(source, tmp_path), 16)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(dataset.directory).stat().st_mode) == mode


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize(("documents", "text_fits"), [(40_000, False), (1000, True)])
def test_a_full_disk_leaves_nothing_half_written(small_disk, tmp_path, documents, text_fits):
    # Text of few different words: small once TFDS has compressed it, large as tokens.
    pattern = [{"text": f"{i:06d} " + "word " * 100} for i in range(documents)]
    path = write_jsonl(tmp_path / "big.jsonl", pattern)
    config = config_of(path, small_disk)
    with pytest.raises(
        OSError, match=r"No space left on device under .*disk .* data\.data_dir"
    ) as e:
        nfllm.data.load(config, 16)
    assert e.value.errno == errno.ENOSPC
    left = files_below(small_disk)
    assert not any("incomplete" in name or "/." in name for name in left)
    assert not any(name.startswith("tokens") for name in left)
    assert any(name.endswith("dataset_info.json") for name in left) == text_fits


def test_other_errors_are_not_taken_for_a_full_disk():
    with pytest.raises(PermissionError, match=r"^mine$"), cache.explain_full_disk(epath.Path("x")):
        raise PermissionError("mine")
    with pytest.raises(RuntimeError, match=r"^other$"), cache.explain_full_disk(epath.Path("x")):
        raise RuntimeError("other")


@pytest.fixture
def bucket(monkeypatch):
    return object_storage.in_memory(monkeypatch)


def test_a_tilde_is_the_home_directory(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bytes_tokenizer().save(tmp_path / "mine.json")
    dataset = nfllm.data.load(config_of(source, "~/data", tokenizer="~/mine.json"), 16)
    assert dataset.directory.parent == epath.Path(tmp_path / "data" / "tokens")


def test_tokens_can_be_kept_in_object_storage(source, tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local = nfllm.data.load(config_of(source, tmp_path / "local"), 16)
    config = config_of(source, "gs://bucket/nfllm")
    remote = nfllm.data.load(config, 16)
    assert remote.fingerprint == local.fingerprint
    every = np.arange(len(local.train))
    assert np.array_equal(remote.train.gather(every), local.train.gather(every))
    assert bucket.written[-1].endswith("/manifest.json")
    written = len(bucket.written)
    assert nfllm.data.load(config, 16).fingerprint == local.fingerprint
    assert len(bucket.written) == written
    assert str(remote.directory).startswith("gs://bucket/nfllm/tokens/text_files-")


def test_the_card_is_json(source, tmp_path):
    card = nfllm.data.load(config_of(source, tmp_path), 16).card
    assert json.loads(json.dumps(card)) == card
    assert set(card) == {
        "dataset", "sources", "licences", "malformed", "malformed_messages",
        "documents", "splits", "held_out", "tokenizer", "windows", "fingerprint",
    }  # fmt: skip


def test_importing_the_data_layer_imports_nothing_heavy():
    heavy = ("tensorflow_datasets", "tokenizers", "pyarrow", "array_record", "jax")
    script = f"import sys, nfllm.data; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
