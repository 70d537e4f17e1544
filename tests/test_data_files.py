"""Which files a source means: hidden ones, links, globs, and files that look alike."""

import os
from pathlib import Path

import numpy as np
import pytest
from data_configs import data_config, words, write_jsonl

import nfllm.data
from nfllm.config import ConfigError
from nfllm.data.files import expand, files_below
from nfllm.data.python_files import python_files
from nfllm.data.text_files import find_files

SEARCHES = {
    "text_files": (lambda root: find_files(str(root)), ".txt"),
    "glob": (lambda root: find_files(f"{root}/**/*.txt"), ".txt"),
    "python_source": (python_files, ".py"),
}


@pytest.fixture(params=SEARCHES)
def search(request):
    return SEARCHES[request.param]


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_names_that_begin_with_a_dot_are_passed_over(tmp_path, search):
    find, suffix = search
    root = tmp_path / ".hidden"  # named, so it is meant
    expected = [make(root / f"a{suffix}"), make(root / "b.d" / f"c{suffix}")]
    for name in (
        f"._a{suffix}",
        f".#a{suffix}",
        f".ipynb_checkpoints/a{suffix}",
        f".git/x/a{suffix}",
    ):
        make(root / name)
        make(root / "b.d" / name)
    assert find(root) == expected


def test_a_hidden_file_that_is_named_is_read(tmp_path):
    path = make(tmp_path / ".a.txt")
    assert find_files(str(path)) == [path]


def test_links_are_followed_and_every_file_is_read_once(tmp_path, search):
    find, suffix = search
    root, other = tmp_path / "root", tmp_path / "other"
    expected = {make(root / f"a{suffix}"), make(root / "sub" / f"b{suffix}")}
    make(other / f"c{suffix}")
    (root / "linked").symlink_to(other)
    (root / "twice").symlink_to(other)
    (root / "sub" / "up").symlink_to(root)  # a circle
    (root / f"copy{suffix}").symlink_to(root / f"a{suffix}")
    (root / "elsewhere").symlink_to(make(tmp_path / "blob"))
    found = find(root)
    assert {path.resolve() for path in found} == {*expected, other / f"c{suffix}"}
    assert len(found) == 3


@pytest.mark.parametrize("kind", ["text_files", "python_source"])
def test_a_link_to_nothing_is_named(tmp_path, kind):
    find, suffix = SEARCHES[kind]
    make(tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").symlink_to("../annex/b")
    with pytest.raises(
        ConfigError, match=rf"b\{suffix} is a link to '../annex/b', which does not exist"
    ):
        find(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_read_is_an_error(tmp_path):
    make(tmp_path / "closed" / "a.txt")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(PermissionError):
        files_below(tmp_path, lambda name: True)


@pytest.mark.parametrize("name", ["exp[1]", "a?", "a*b", "**", "a,b", "a[!x]"])
def test_what_exists_is_meant_as_it_is_written(tmp_path, name):
    """And nothing that its name, as a glob, would fit."""
    for other in ("exp1", "ab", "axb", "a", "b", "ay"):
        make(tmp_path / other / "other.txt")
    path = make(tmp_path / name / "mine.txt")
    assert find_files(str(tmp_path / name)) == [path]
    assert find_files(str(path)) == [path]
    if "," not in name:
        assert find_files(str(tmp_path / name / "*.txt")) == [path]
        assert find_files(f"{tmp_path / name}/*.txt, {tmp_path}/ay/*.txt") == sorted(
            [path, tmp_path / "ay" / "other.txt"]
        )
    assert expand(str(tmp_path / name)) == [tmp_path / name]


def test_the_packages_of_this_python_have_a_name(tmp_path):
    numpy = Path(np.__file__).parent
    assert expand("{site-packages}") == [numpy.parent]
    assert expand(f"{tmp_path}/none, {{site-packages}}/nump[y]") == [tmp_path / "none", numpy]


@pytest.mark.parametrize("dataset", ["text_files", "python_source"])
def test_another_file_is_never_taken_for_this_one(tmp_path, dataset, monkeypatch):
    """Of the same name, size and time, as archives give them: at another place, or put here."""
    suffix = ".txt" if dataset == "text_files" else ".py"

    def write(root, word: str) -> None:
        root.mkdir(exist_ok=True)
        for i in range(30):
            path = root / f"{i}{suffix}"
            path.write_text(f"# {word} {words(i)}")
            os.utime(path, (1, 1))

    def load(where: str):
        config = data_config(
            tmp_path / "data",
            dataset=dataset,
            sources=where,
            tokenizer="bytes",
            validation_fraction=0.3,
        )
        found = nfllm.data.load(config, 16)
        every = found.train.gather(range(len(found.train)))
        return found.tokenizer.decode(every.ravel())

    for word in ("tree", "bush"):
        write(tmp_path / word, word)
        monkeypatch.chdir(tmp_path / word)
        assert word in load(".")
    assert "tree" in load(str(tmp_path / "tree"))
    write(tmp_path / "tree", "vine")
    assert "vine" in load(str(tmp_path / "tree"))


def test_a_copy_elsewhere_has_the_same_fingerprint(tmp_path):
    prints = set()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        path = write_jsonl(tmp_path / place / "a.jsonl", [{"text": words(i)} for i in range(30)])
        config = data_config(
            tmp_path / "data",
            dataset="text_files",
            sources=str(path),
            tokenizer="bytes",
            validation_fraction=0.3,
        )
        prints.add(nfllm.data.load(config, 16).fingerprint)
    assert len(prints) == 1
