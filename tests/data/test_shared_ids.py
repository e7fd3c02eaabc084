"""The teacher's tokenizer must give every id that both models have the student's token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.data.tokens.shared_ids import disagreements, is_assumed, teacher_tokenizer_problems
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, NullTokenizer
from megatron_kd.errors import ConfigError, InputError
from tests.tiny import tiny_config


@pytest.fixture
def teacher_folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy of the student's tokenizer, to be changed."""
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "teacher"))


def config(student: Path, teacher: Path | None, *, student_ids: int = 400, teacher_ids: int = 512) -> ConfigContainer:
    cfg = tiny_config(Path("unused"), student={"vocab_size": student_ids}, teacher={"vocab_size": teacher_ids}, iters=1)
    cfg.tokenizer.tokenizer_type, cfg.tokenizer.vocab_size = "huggingface", None
    cfg.tokenizer.tokenizer_model = str(student)
    cfg.tokenizer.teacher_tokenizer_model = None if teacher is None else str(teacher)
    return cfg


def edit(folder: Path, change: Any) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def swap(content: dict[str, Any], first: int, second: int) -> None:
    """Exchange the ids of two tokens of the vocabulary."""
    vocabulary = content["model"]["vocab"]
    names = {token_id: token for token, token_id in vocabulary.items()}
    vocabulary[names[first]], vocabulary[names[second]] = second, first


def add(content: dict[str, Any], token_id: int, text: str) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": token_id, "content": text, "special": True, **flags})


def test_one_tokenizer_under_two_names(
    tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path, teacher_folder: Path
) -> None:
    assert teacher_tokenizer_problems(config(tokenizer_folder, teacher_folder), tokenizer) == []
    assert teacher_tokenizer_problems(config(tokenizer_folder, None), tokenizer) == []


def test_tokens_that_only_one_of_them_has_are_fine(
    tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path, teacher_folder: Path
) -> None:
    edit(teacher_folder, lambda content: add(content, 400, "<|more|>"))
    cfg = config(tokenizer_folder, teacher_folder, student_ids=420)
    assert teacher_tokenizer_problems(cfg, tokenizer) == []


def test_ids_beyond_the_shared_ones_are_not_compared(
    tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path, teacher_folder: Path
) -> None:
    edit(teacher_folder, lambda content: swap(content, 398, 399))
    assert teacher_tokenizer_problems(config(tokenizer_folder, teacher_folder, teacher_ids=398), tokenizer) == []
    assert len(teacher_tokenizer_problems(config(tokenizer_folder, teacher_folder), tokenizer)) == 1


def test_the_line_has_both_files_the_count_and_three_examples(
    tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path, teacher_folder: Path
) -> None:
    for first, second in ((300, 301), (310, 311), (320, 321)):
        edit(teacher_folder, lambda content, pair=(first, second): swap(content, *pair))
    (line,) = map(str, teacher_tokenizer_problems(config(tokenizer_folder, teacher_folder), tokenizer))
    names = tokenizer.tokens()
    assert "\n" not in line
    assert f"tokenizer.tokenizer_model={tokenizer_folder}, tokenizer.teacher_tokenizer_model={teacher_folder}: " in line
    assert "6 of the 400 ids" in line
    for token_id, other in ((300, 301), (301, 300), (310, 311)):
        assert f"{token_id} is {names[token_id]!r} to the student and {names[other]!r} to the teacher" in line
    assert "311 is" not in line


def test_special_tokens_are_compared_too(
    tokenizer: HuggingFaceTokenizer, tokenizer_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    edit(teacher_folder, lambda content: add(content, 400, "<|tool|>"))
    student_folder = shutil.copytree(tokenizer_folder, tmp_path / "student")
    edit(student_folder, lambda content: add(content, 400, "<|think|>"))
    from megatron_kd.data.tokens.tokenizer import load_huggingface

    cfg = config(student_folder, teacher_folder, student_ids=401)
    (line,) = map(str, teacher_tokenizer_problems(cfg, load_huggingface(student_folder)))
    assert "1 of the 401 ids" in line
    assert "400 is '<|think|>' to the student and '<|tool|>' to the teacher" in line


def test_disagreements() -> None:
    assert disagreements({0: "a", 1: "b", 2: "c"}, {1: "x", 2: "y", 3: "z"}, 2) == [(1, "b", "x")]


def test_a_run_is_refused_before_ranks_meet(
    tokenizer_folder: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_kd.training.train import train

    def too_late(**_: object) -> None:
        raise AssertionError("ranks were started")

    monkeypatch.setattr("megatron_kd.training.starting.running_ranks", too_late)
    edit(teacher_folder, lambda content: swap(content, 300, 301))
    with pytest.raises(ConfigError, match="2 of the 400 ids"):
        train(config(tokenizer_folder, teacher_folder))
    with pytest.raises(ConfigError, match=r"model\.teacher\.vocab_size=300: the tokenizer has 400 ids"):
        train(config(tokenizer_folder, None, teacher_ids=300))
    shutil.rmtree(teacher_folder)
    with pytest.raises(InputError, match=r"tokenizer\.teacher_tokenizer_model=.*there is no such folder or file"):
        train(config(tokenizer_folder, teacher_folder))


def test_a_tokenizer_without_tokens_has_none_to_compare(tokenizer_folder: Path, teacher_folder: Path) -> None:
    assert teacher_tokenizer_problems(config(tokenizer_folder, teacher_folder), NullTokenizer(400)) == []


def test_a_teacher_folder_without_a_tokenizer_is_known(tokenizer_folder: Path, teacher_folder: Path) -> None:
    def from_folder(student: Path, teacher: Path | None, *, mock: bool = False) -> ConfigContainer:
        cfg = config(student, teacher)
        cfg.models.teacher.hf_path, cfg.dataset.mock = str(teacher_folder), mock
        return cfg

    assert is_assumed(from_folder(tokenizer_folder, None))
    assert not is_assumed(from_folder(tokenizer_folder, teacher_folder))  # named, so compared
    assert not is_assumed(from_folder(teacher_folder, None))  # the student reads by the teacher's own
    assert not is_assumed(from_folder(tokenizer_folder, None, mock=True))
    assert not is_assumed(config(tokenizer_folder, None))
