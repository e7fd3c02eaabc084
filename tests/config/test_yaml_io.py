"""YAML: what is read, what is refused with file and line, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.document import read_document, write_yaml
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.yaml_io import dump_config, load_kd_config
from tests.config.base import DOCUMENTED_YAML, distillation


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
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}:{line}:" if line else f"{file}:")
    assert words in problem
    assert "\n" not in problem


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_document(path)


def test_the_documented_example(tmp_path: Path) -> None:
    file = written(tmp_path, DOCUMENTED_YAML)
    expected = ModelOptDistillConfig(logit_kl_temperature=2.0)
    assert load_kd_config(file) == expected
    assert ModelOptDistillConfig.from_yaml(str(file)) == expected


def test_settings_of_the_losses_with_all_their_errors(tmp_path: Path) -> None:
    file = written(tmp_path, "skip_lm_los: true\nkd_loss_scale: -1\nlogits_loss_weight: x\ntrain: {train_iters: 1}\n")
    with pytest.raises(ConfigError) as caught:
        ModelOptDistillConfig.from_yaml(file)
    starts = ["skip_lm_los: unknown key", "logits_loss_weight=x", "train: unknown key", "kd_loss_scale=-1.0: must be"]
    lines = caught.value.problems
    assert len(lines) == len(starts)
    assert all(line.startswith(f"model.kd_config.{start}") for line, start in zip(lines, starts, strict=True)), lines
    assert all(str(file) in line for line in lines)


def test_a_dump_is_complete_ordered_and_repeatable() -> None:
    text = dump_config(distillation())
    assert text == dump_config(distillation())
    assert text.startswith("model:\n  num_layers: 4\n")
    assert "    intermediate_layer_pairs: [[decoder.final_layernorm, decoder.final_layernorm]]\n" in text
    assert text.index("\ntrain:") < text.index("\nmixed_precision:\n  precision: fp32\n")
