"""The word lint finds each of its phrases, names the line, and finds nothing in the files that are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words
from tools.words import ROOT, WORDS, Word, findings, main


def lines_found(path: Path, text: str) -> list[tuple[int, str]]:
    """The lines and phrases of what is found in a file of this text."""
    path.write_text(text, encoding="utf-8")
    return [(found.line, found.phrase) for found in findings(path)]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.example)
def test_each_phrase_is_found_in_its_example(word: Word, tmp_path: Path) -> None:
    heading = word.example.startswith("#")
    path = tmp_path / ("a.md" if heading else "a.py")
    path.write_text(word.example if heading else f'"""{word.example}"""\n', encoding="utf-8")
    assert word in [found.word for found in findings(path)]


def test_docstrings_comments_and_strings_are_read(tmp_path: Path) -> None:
    text = '''"""Fine.

The run goes
on.
"""
x = 1  # it is told
# a comment that
# is built anew
y = f"{x} is served"
goes_on = told = "told"
'''
    found = [(3, "goes on"), (6, "told"), (8, "anew"), (9, "served")]
    assert lines_found(tmp_path / "a.py", text) == found


def test_prose_of_documents_is_read_and_code_is_not(tmp_path: Path) -> None:
    text = "# A title\n\n```text\nthe run goes on\n```\n\nis `told` what\nis served, and goes\non `anew`\n"
    assert lines_found(tmp_path / "a.md", text) == [(8, "served"), (8, "goes on")]


def test_a_code_span_may_go_over_a_line(tmp_path: Path) -> None:
    assert lines_found(tmp_path / "a.md", "`anew\ntold` and `told`\n\na ` alone, told\n\n`told`\n") == [(4, "told")]


def test_comments_of_other_files_are_read(tmp_path: Path) -> None:
    assert lines_found(tmp_path / "a.yaml", "# a run goes\n# on\na: 1\n") == [(1, "goes on")]


@pytest.mark.parametrize(
    "text",
    [
        "what goes on top", "there is none", "this is none of them", "None where it is None", "must lie in [0, 1]",
        "copy a layer to its device", "is there another one? What is it?", "of no use here", "a server",
    ],
)  # fmt: skip
def test_plain_english_passes(text: str, tmp_path: Path) -> None:
    assert lines_found(tmp_path / "a.md", text) == []


def test_the_command_prints_place_phrase_and_replacement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("fine\n\nit is told\n", encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path / 'a.md'}:3: told -> report" in capsys.readouterr().out


def test_the_checked_files_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([])
    assert (code, capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize("path", [*words.CHECKED, *words.NOT_YET, *words.EXEMPT])
def test_each_path_of_its_lists_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.slow
def test_a_listed_path_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(words, "EXEMPT", ())
    assert main([]) == 1
    assert "tools/words.py:" in capsys.readouterr().out
