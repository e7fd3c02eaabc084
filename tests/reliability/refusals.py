"""Runs that torchrun starts and that are refused, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.recipes.launch import ROOT, SMALL_LLAMA, torchrun

_RECIPE = ROOT / "recipes/llama/distill_llama32_3b-1b.py"


def refused(folder: Path, words: Sequence[str]) -> list[str]:
    """Start a recipe, on two ranks, with arguments for which it must be refused.

    Checked: code 2 in the run's folder, one telling for both ranks, no traceback, and no torch in either rank.

    Returns:
        The reported errors.
    """
    folder.mkdir(parents=True)
    run_dir = folder / "run"
    ranks = f"--log-dir {folder / 'ranks'} --redirects 3 {_RECIPE}"
    done = torchrun(
        2, ranks, *SMALL_LLAMA, f"logger.run_dir={run_dir}", *words, cwd=folder, PYTHONPROFILEIMPORTTIME="1"
    )
    assert done.returncode != 0, "the run was not refused"
    logs = [path.read_text().splitlines() for path in sorted((folder / "ranks").rglob("stderr.log"))]
    imported = [{line.split("|")[-1].strip() for line in log if line.startswith("import time:")} for log in logs]
    said = [[line for line in log if not line.startswith("import time:")] for log in logs]
    reports = [json.loads(path.read_text()) for path in sorted((folder / "ranks").rglob("error.json"))]
    assert len(logs) == 2 and "megatron_kd.checks" in imported[0], "a rank did not start"
    assert not any("torch" in modules for modules in imported), "torch was imported before the run was refused"
    assert not any("Traceback" in line for log in said for line in log), said
    assert said == [[], []] and len(reports) == 1, f"not rank 0 alone speaks, and through torchrun: {said}, {reports}"
    code = run_dir / "exit_code"
    assert code.is_file() and code.read_text() == "2\n", f"exit code: {code.read_text() if code.is_file() else None}"
    assert [path.name for path in run_dir.iterdir()] == ["exit_code"], "the run has begun"
    lines = reports[0]["message"]["message"].splitlines()
    assert all(line.startswith("error: ") and done.stderr.count(line) == 1 for line in lines), done.stderr
    return [line.removeprefix("error: ") for line in lines]
