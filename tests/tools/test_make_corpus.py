"""The corpus maker's command line."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tools.make_corpus import main

XML = str(Path(sysconfig.get_paths()["stdlib"]) / "xml")


def test_it_makes_a_corpus_once_and_prints_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--output", str(tmp_path), "--vocab-size", "300", "--source", XML, "--workers", "1"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    assert "train: " in first and "valid: " in first and "bytes per token" in first
    assert main(argv) == 0
    assert f"{tmp_path} is complete" in capsys.readouterr().out


def test_bad_input_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "tools/make_corpus.py", "--output", str(tmp_path / "out"), "--source", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("make_corpus: ") and result.stderr.count("\n") == 1
