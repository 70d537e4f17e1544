"""`python -m nfllm.data`, as a user calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

from data_configs import words, write_jsonl


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nfllm.data", *arguments], capture_output=True, text=True
    )


def flags(tmp_path: Path, **keys: object) -> list[str]:
    keys = {"data_dir": tmp_path / "cache", "tokenizer": "bytes", **keys}
    return [f"--config.data.{key}={value}" for key, value in keys.items()]


def test_it_prepares_and_prints_what_there_is(tmp_path):
    records = [{"text": words(i), "package": f"p{i % 4}"} for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", [*records, records[0], {"text": "", "package": "p0"}])
    keys = {"dataset": "text_files", "sources": path, "validation_split": "field"}
    keys |= {"validation_field": "package", "validation_values": "p3"}
    first = run(*flags(tmp_path, **keys), "--config.model.context_length=16")
    assert first.returncode == 0, first.stderr
    train = [record["text"] for record in records if record["package"] != "p3"]
    size = sum(map(len, train))
    windows = (size + 30) // 16
    kept = 16 * windows / (size + 30)
    out = re.sub(r" {2,}", "  ", first.stdout)
    assert "documents  42 read; left out: 1 exact duplicates, 1 empty, 0 malformed\n" in out
    assert (
        f"train  30 documents, 0.0 MB, {size:,} tokens, 1.00 bytes per token; "
        f"{windows:,} windows keep {kept:.1%}\n"
    ) in out
    assert "held out  package: p3\n" in out
    assert "windows  packed, 16 tokens\n" in out
    assert "tokenizer  bytes, vocabulary 257\n" in out
    assert re.search(r"took  \d+\.\d s, \d\.\d\d GB of memory at most\n", out)
    assert "tokens: 100%" in first.stderr

    second = run(*flags(tmp_path, **keys), "--config.model.context_length=16")
    assert second.stdout.split("took")[0] == first.stdout.split("took")[0]
    assert "%" not in second.stderr


def test_errors_are_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n{broken\n")
    keys = {"dataset": "text_files", "sources": path}
    for arguments, message in (
        (flags(tmp_path, **keys), rf"error: {path}, line 2: malformed JSON: .*\n"),
        (flags(tmp_path, dataset="python_stdlb"), r"error: .* did you mean 'python_stdlib'\?.*\n"),
        (flags(tmp_path, vocab_size=70_000), r"error: data\.vocab_size=70000 is outside .*\n"),
    ):
        found = run(*arguments)
        assert found.returncode == 1
        assert found.stdout == ""
        assert re.fullmatch(message, found.stderr.splitlines(keepends=True)[-1])
        assert "Traceback" not in found.stderr
    assert run("what").returncode == 1
