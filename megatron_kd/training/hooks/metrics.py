"""Metrics on disk: `metrics.jsonl` and TensorBoard, written by rank 0 only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megatron_kd.messages import going_on_without
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.records import consumed


class Metrics(Hook):
    """Writes every `logger.log_interval`-th step and every evaluation, with what the run has been trained on."""

    def before_run(self, loop: Loop) -> None:
        """Open the files, without the lines of steps that were lost."""
        run, values = loop.run, loop.run.derived
        board = values.tensorboard_dir if run.cfg.logger.tensorboard else None
        self._writer = MetricsWriter(values.metrics_file, board, run.step, enabled=run.layout.rank == 0)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Write the step if it is due to be logged."""
        if loop.is_due(loop.run.cfg.logger.log_interval):
            self._writer.write(loop.run.step, "train", {**values, **consumed(loop.run)})

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Write the evaluation."""
        self._writer.write(loop.run.step, "validation", {**values, **consumed(loop.run)})

    def close(self, loop: Loop, error: BaseException | None) -> None:
        """Write the lines that wait for room."""
        self._writer.close()


class MetricsWriter:
    """Appends one JSON line per logged step to `metrics.jsonl`, and the same numbers to TensorBoard.

    A full or failing disk is reported and ends no run: its lines wait in memory for room.

    Args:
        path: of the JSONL file.
        tensorboard_dir: None writes no TensorBoard events.
        resumed_step: lines of later steps belong to an attempt that was lost, and are dropped; those that are there of
            this step are not written again.
        enabled: false on all ranks but one.
    """

    def __init__(self, path: Path, tensorboard_dir: Path | None, resumed_step: int, enabled: bool) -> None:
        self._path, self._enabled, self._there = path, enabled, set[tuple[int, str]]()
        self._waiting, self._failing = b"", False
        self._board: Any = None
        if not enabled:
            return
        with going_on_without(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if dropped := _drop_after(path, resumed_step):
                steps = f"step {dropped[0]}" if dropped[0] == dropped[-1] else f"steps {dropped[0]} to {dropped[-1]}"
                print(f"{path}: the lines of {steps} are dropped, since no checkpoint holds them", file=sys.stderr)
            self._there = _lines_of(path, resumed_step)
        if tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            with going_on_without(tensorboard_dir):
                self._board = SummaryWriter(str(tensorboard_dir), purge_step=resumed_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the `values` of `split` ("train" or "validation") after `step` steps, at full precision."""
        if not self._enabled or (step, split) in self._there:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._waiting += (json.dumps({"step": step, "split": split, "timestamp": now, **values}) + "\n").encode()
        self._flush()
        if (board := self._board) is not None:
            self._board = None  # for good, if it fails
            with going_on_without(Path(board.log_dir)):
                for name, value in values.items():
                    board.add_scalar(f"{split}/{name}", value, step)
                self._board = board

    def close(self) -> None:
        """Write the lines that wait for room, or report that they are lost."""
        if self._waiting:
            self._flush()
        if self._waiting:
            lost = self._waiting.count(b"\n")
            print(f"warning: {self._path} lacks its last {lost} lines", file=sys.stderr, flush=True)
        if self._board is not None:
            with going_on_without(Path(self._board.log_dir)):
                self._board.close()

    def _flush(self) -> None:
        """Write what waits, as much as there is room for; the rest of a line that was cut off follows later."""
        try:
            with self._path.open("ab", buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError as error:
            if not self._failing:
                why = f"{error.strerror or error}; the run continues, and its lines wait for room"
                print(f"warning: {self._path} was not written: {why}", file=sys.stderr, flush=True)
        self._failing = bool(self._waiting)


def _lines_of(path: Path, step: int) -> set[tuple[int, str]]:
    """The lines that a `metrics.jsonl` has of a step, each as the step and its split."""
    if not path.exists():
        return set()
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {(step, record["split"]) for record in records if record["step"] == step}


def _drop_after(path: Path, step: int) -> list[int]:
    """Cut off the lines at the end that are of later steps, which needs no room on the disk. Returns their steps."""
    if not path.exists():
        return []
    lines, steps = path.read_bytes().splitlines(keepends=True), list[int]()
    size = sum(map(len, lines))
    while lines and not _is_until(lines[-1], step):
        line = lines.pop()
        size -= len(line)
        if line.endswith(b"}\n"):
            steps.insert(0, json.loads(line)["step"])
    os.truncate(path, size)
    return steps


def _is_until(line: bytes, step: int) -> bool:
    # A process killed while writing leaves a last line without its end.
    return bool(line.endswith(b"}\n") and json.loads(line)["step"] <= step)
