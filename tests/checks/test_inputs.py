"""The files of a configuration, read: what is too large is named, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_kd.checks import inputs
from megatron_kd.checks.inputs import inspect, tokenizer_size
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.sections import DatasetConfig, TokenizerConfig
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_huggingface
from tests.tiny import tiny_config

LINES = [f"line {number} of some text" for number in range(200)]


@pytest.fixture
def cfg(tmp_path: Path) -> ConfigContainer:
    """A run on tokenised data, with a byte of it changed."""
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" for line in LINES))
    train_byte_bpe(LINES, 300, tmp_path / "tokenizer")
    tokenizer = load_huggingface(tmp_path / "tokenizer")
    preprocess([tmp_path / "a.txt"], tmp_path / "a", tokenizer, split_lines=True, workers=1)
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[4] ^= 1
    (tmp_path / "a.bin").write_bytes(content)
    base = tiny_config(tmp_path / "run", student={"vocab_size": None}, teacher={"vocab_size": None})
    return replace(
        base,
        dataset=DatasetConfig(data_path=[str(tmp_path / "a")], split="9,1,0"),
        tokenizer=TokenizerConfig(tokenizer_model=str(tmp_path / "tokenizer")),
    )


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_changed_byte_is_found_and_nothing_is_written(cfg: ConfigContainer, tmp_path: Path) -> None:
    before = files(tmp_path)
    (problem,) = inspect(cfg).problems
    assert "SHA-256" in str(problem)
    assert files(tmp_path) == before


def test_data_that_is_too_large_is_named(cfg: ConfigContainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "READ_AT_MOST", 100)
    inspection = inspect(cfg)
    assert inspection.problems == []
    assert any("ids and hashes of 1 data files" in clause for clause in inspection.unchecked)


def test_a_tokenizer_and_data_are_wrong_at_once(cfg: ConfigContainer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer/tokenizer.json").write_text("{")
    problems = list(map(str, inspect(cfg).problems))
    assert len(problems) == 2 and "JSON" in problems[0] and "SHA-256" in problems[1]


def test_the_size_of_a_tokenizer_is_known_where_it_can_be_read(cfg: ConfigContainer, tmp_path: Path) -> None:
    assert tokenizer_size(cfg) == 300
    assert tokenizer_size(replace(cfg, tokenizer=TokenizerConfig(tokenizer_model=str(tmp_path / "none")))) is None
