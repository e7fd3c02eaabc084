"""`megatron-kd ls`."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.commands.cli import main


def test_ls(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes" / "x"
    folder.mkdir(parents=True)
    (folder / "b.py").write_text('"""The second.\n\nMore."""\ndef recipe(): ...\n')
    (folder / "a-long-name.py").write_text("def a_long_name(): ...\n")
    (folder / "common.py").write_text('"""No recipe."""\n')
    (folder / "broken.py").write_text("def (\n")
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "recipes/x/a-long-name.py",
        "recipes/x/b.py            The second.",
        "recipes/x/broken.py       (is not valid Python)",
    ]


def test_the_recipes_of_the_project_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("recipes/tiny/distill_tiny.py" in line and "Distil a tiny GPT" in line for line in lines)
    assert not any("tiny_parts" in line for line in lines)
