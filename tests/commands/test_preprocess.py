"""`megatron-kd preprocess`: what it prints, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.commands.cli import main
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_bpe(["some text", "more text"], 260, folder)
    return str(folder)


def preprocess(file: Path, prefix: Path | str, tokenizer: str, *options: str) -> int:
    return main(
        ["preprocess", "--input", str(file), "--output-prefix", str(prefix), "--tokenizer", tokenizer, *options]
    )


def test_counts_and_the_first_skipped_record_are_printed(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, prefix = tmp_path / "a.json", tmp_path / "new" / "out"
    file.write_text("".join(json.dumps(record) + "\n" for record in ({"body": "some text"}, {"body": "more"}, {})))
    options = ["--json-key", "body", "--workers", "1", "--skip-malformed", "--no-append-eod"]
    assert preprocess(file, prefix, tokenizer, *options) == 0
    output = capsys.readouterr().out
    assert f"{prefix}: 2 documents, 13 bytes, " in output
    assert "1 malformed record skipped" in output
    assert f"the first malformed record: {file}:3: no key 'body' (it has none)" in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "0"], ["--workers 0: must be 1 or more"]),
        (
            ["--tokenizer", "no/such"],
            ["--tokenizer=no/such: there is no such folder or file; it looks like a name on the"],
        ),
        (["--chat-template", "a.jinja"], ["--chat-template a.jinja: belongs to conversations; give --chat too"]),
        (["--chat", "--split-lines", "--workers", "-1"], ["--workers -1: must be 1", "--split-lines: belongs to text"]),
        (["--input", "no.txt", "b.csv"], ["--input no.txt: there is no such file", "--input b.csv: there is no such"]),
    ],
)
def test_what_is_refused_is_a_line_each(
    tmp_path: Path, tokenizer: str, options: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert preprocess(tmp_path / "a.txt", tmp_path / "out", tokenizer, *options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(f"error: {start}") for line, start in zip(lines, told, strict=True)), lines
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
