"""YAML: what is read, what is refused with file and line, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.document import read_document, write_yaml
from megatron_kd.errors import ConfigError


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "file.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5", 1.5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("7", 7),
        ("-1_000", -1000),
        ("+3", 3),
        ("0", 0),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'7'", "7"),
        ("[a, 1, [b]]", ["a", 1, ["b"]]),
        ("{b: {c: 1}}", {"b": {"c": 1}}),
        ("!!str 7", "7"),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: Any) -> None:
    read = read_document(written(tmp_path, f"a: {text}\n")).data["a"]
    assert read == value
    assert type(read) is type(value)
    assert read_document(written(tmp_path, write_yaml({"a": read}))).data["a"] == value


def test_lines_and_anchors(tmp_path: Path) -> None:
    document = read_document(written(tmp_path, "\ufeffa: &x\n  b: 1\nc: *x\n"))
    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}
    assert document.lines[("a", "b")] == 2
    assert document.lines[("c",)] == 3


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", None, "is empty"),
        ("# nothing\n", None, "is empty"),
        ("- a\n", 1, "must be a mapping"),
        ("text\n", 1, "must be a mapping"),
        ("a: 1\nb: [1\n", 3, "not valid YAML"),
        ("a: 1\n b: 2\n", 2, "not valid YAML"),
        ("a: \t- x\n\tb: 1\n", 1, "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, "a given twice, first on line 1"),
        ("t:\n  a: 1\n  a: 3\n", 3, "t.a given twice, first on line 2"),
        ("a: 1\n---\nb: 1\n", 2, "not valid YAML"),
        ("a: !!python/object/apply:os.system [echo]\n", 1, "only plain data"),
        ("a: !!python/name:os.system\n", 1, "only plain data"),
        ("a: !!timestamp 2024-01-01\n", 1, "only plain data"),
        ("a: !mine 3\n", 1, "only plain data"),
        ("a: !!int x\n", 1, "tagged as int"),
        ("a: &x\n  b: *x\n", 1, "contains it"),
        ("? [a]\n: 1\n", 1, "a key that is not text"),
        ("a: *x\n", 1, "undefined alias"),
        (b"a: \xff\n", None, "not UTF-8"),
        (b"a: \x00\n", None, "not valid YAML"),
    ],
)
def test_refused_with_file_and_line(tmp_path: Path, text: str | bytes, line: int | None, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_document(file)
    (problem,) = caught.value.lines
    assert problem.startswith(f"{file}:{line}:" if line else f"{file}:")
    assert words in problem
    assert "\n" not in problem


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_document(path)
