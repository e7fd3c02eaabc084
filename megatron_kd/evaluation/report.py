"""Measurements as a table and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """The measurements of an evaluation, equal on every rank.

    Attributes:
        step: of the checkpoint; None for a Hugging Face folder.
        teacher: where its weights are from; None without one.
        layout: of the ranks.
        sequences: how many were read, of `seq_length` tokens.
        values: means over unmasked tokens, and `tokens`, their number.
    """

    model: str
    step: int | None
    teacher: str | None
    layout: str
    sequences: int
    seq_length: int
    values: dict[str, float]


def table(report: Report) -> str:
    """The table that the command prints."""
    step = "" if report.step is None else f" (step {report.step})"
    heading = [f"model    {report.model}{step}"]
    if report.teacher is not None:
        heading.append(f"teacher  {report.teacher}")
    heading.append(f"data     {report.sequences} sequences of {report.seq_length} tokens, {report.layout}")
    shown = {name: value for name, value in report.values.items() if not name.endswith("_weighted")}
    width = max(map(len, shown))
    return "\n".join([*heading, "", *(f"{n:<{width}}  {_number(v):>12}" for n, v in shown.items())]) + "\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}"


def write_json(value: dict[str, Any], output: str) -> None:
    """Write `--output`, numbers at full precision."""
    Path(output).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def output_problems(output: str | None) -> Iterator[str]:
    """Why `--output` cannot be written, before anything is computed for it."""
    if output is None:
        return
    folder = Path(output).absolute().parent
    if Path(output).is_dir():
        yield f"--output {output}: is a folder; name a file"
    elif not folder.is_dir():
        yield f"--output {output}: there is no folder {folder}; make it first"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"--output {output}: {folder} cannot be written; name another place"
