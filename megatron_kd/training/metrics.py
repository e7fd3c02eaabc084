"""What a run tells: `metrics.jsonl` and TensorBoard, written by rank 0 only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class MetricsWriter:
    """Appends one JSON line a logged step to `metrics.jsonl`, and the same numbers to TensorBoard.

    Args:
        path: of the JSONL file.
        tensorboard_dir: None writes no TensorBoard events.
        resumed_step: lines of later steps belong to an attempt that was lost, and are dropped.
        enabled: false on all ranks but one.
    """

    def __init__(self, path: Path, tensorboard_dir: Path | None, resumed_step: int, enabled: bool) -> None:
        self._file: Any = None
        self._board: Any = None
        if not enabled:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(path, resumed_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(tensorboard_dir), purge_step=resumed_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write the `values` of `split` ("train" or "validation") after `step` steps, at full precision."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()


def has_record(path: Path, step: int, split: str) -> bool:
    """Whether a `metrics.jsonl` tells of `split` after `step` steps."""
    if not path.exists():
        return False
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return any(record["step"] == step and record["split"] == split for record in records)


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines(True) if _is_until(line, step)]
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _is_until(line: str, step: int) -> bool:
    # A process killed while writing leaves a last line without its end.
    return line.endswith("}\n") and json.loads(line)["step"] <= step
