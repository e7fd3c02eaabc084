"""The import contracts of `pyproject.toml` hold, and a room that imports a higher one breaks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.launch import ROOT

_LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def _lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run([sys.executable, "-c", _LINT], cwd=checkout, env=env, capture_output=True, text=True)


def test_a_room_imports_only_lower_rooms() -> None:
    result = _lint(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("losses/kinds.py", "from megatron_kd.training import step", "A room imports only lower rooms"),
        ("runtime/seeds.py", "def f():\n    import megatron_kd.entry", "A room imports only lower rooms"),
        ("data/tokens/tokenizer.py", "import megatron_kd.data.samples.mock", "The parts of `data` import one way"),
        ("config/derived.py", "import torch", "Describing, checking and planning a run imports no torch"),
    ],
)
def test_an_import_against_the_floors_is_refused(tmp_path: Path, module: str, line: str, broken: str) -> None:
    shutil.copytree(ROOT / "megatron_kd", tmp_path / "megatron_kd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "megatron_kd" / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = _lint(tmp_path)
    assert result.returncode == 1
    assert f"{broken} BROKEN" in result.stdout
