"""Workers in processes of their own: of a row, and of a row under a mutant in a changed copy of the sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.reliability.row import Mutant, Row
from tests.reliability.worker import Outcome

TOP = Path(__file__).resolve().parents[2]
MUTANT_DRAWS = 5
_LIMIT_S = 1800  # of a worker; none comes near it
_COPIED = ("megatron_kd", "tests", "recipes", "conf", "launch", "tools")


class BadMutant(Exception):
    """An invalid mutant: its text does not occur exactly once, or its file is no longer Python."""


def row_outcome(row: Row, seed: int, draws: int | None = None, *, through_torchrun: bool = True) -> Outcome:
    """Make the draws of a row (the first `draws`, if given) in a process of its own."""
    numbers = range(row.draws if draws is None else min(draws, row.draws))
    return _worker(TOP, row, list(numbers), seed, through_torchrun=through_torchrun)


def mutant_outcome(row: Row, mutant: Mutant, seed: int) -> Outcome:
    """Make up to `MUTANT_DRAWS` draws of a row with the code changed, ending at the first that is red.

    Raises:
        BadMutant: the change cannot be made.
    """
    numbers = list(row.mutant_draws or range(min(MUTANT_DRAWS, row.draws)))[:MUTANT_DRAWS]
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in _COPIED:
            shutil.copytree(TOP / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        apply(mutant, Path(folder))
        return _worker(Path(folder), row, numbers, seed, through_torchrun=False)


def apply(mutant: Mutant, top: Path) -> None:
    """Change the file of a mutant below `top`.

    Raises:
        BadMutant: the text does not occur once, or the file is no longer Python.
    """
    path = top / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise BadMutant(f"{mutant.path}: {mutant.old!r} occurs {text.count(mutant.old)} times, not once")
    changed = text.replace(mutant.old, mutant.new)
    if path.suffix == ".py":
        try:
            compile(changed, str(path), "exec")
        except SyntaxError as error:
            raise BadMutant(f"{mutant.path}: {error}") from None
    path.write_text(changed)


def _worker(top: Path, row: Row, numbers: list[int], seed: int, *, through_torchrun: bool) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        output = Path(folder) / "outcome.json"
        words = [row.name, f"--output={output}", f"--seed={seed}", "--draws", *map(str, numbers)]
        command = [sys.executable, "-m", "tests.reliability.worker", *words]
        if not through_torchrun:
            command.append("--no-torchrun")
        environment = {**os.environ, "PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=top, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_LIMIT_S, check=False,
        )  # fmt: skip
        if not output.exists():
            return Outcome(failure=f"the worker ended with {done.returncode}: {done.stdout[-2000:]}")
        return Outcome(**json.loads(output.read_text()))
