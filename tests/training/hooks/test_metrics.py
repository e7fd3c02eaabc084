"""metrics.jsonl: full precision, and no lines of steps that were lost."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from megatron_kd.training.hooks.metrics import MetricsWriter


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, steps: list[int], resumed_step: int = 0, board: Path | None = None, enabled: bool = True) -> None:
    writer = MetricsWriter(path, board, resumed_step, enabled)
    for step in steps:
        writer.write(step, "train", {"loss": 1 / 3 + step})
    writer.close()


def test_values_keep_full_precision(tmp_path: Path) -> None:
    write(tmp_path / "run/metrics.jsonl", [1])
    (line,) = lines(tmp_path / "run/metrics.jsonl")
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert line == {"step": 1, "split": "train", "loss": 1 / 3 + 1}
    assert written.utcoffset() == timedelta(0) and abs(datetime.now(timezone.utc) - written) < timedelta(minutes=1)


def test_a_line_of_the_resumed_step_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    write(path, [2, 3], resumed_step=2)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_a_resumed_run_drops_the_lines_of_lost_steps_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4])
    assert capsys.readouterr().err == ""
    write(path, [3, 4], resumed_step=2)
    dropped = f"{path}: the lines of steps 3 to 4 are dropped, since no checkpoint holds them"
    assert capsys.readouterr().err.splitlines() == [dropped]
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]
    write(path, [5], resumed_step=4)
    assert capsys.readouterr().err == ""


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_text(path.read_text() + '{"step": 3, "sp')
    write(path, [3], resumed_step=2)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [1], board=tmp_path / "board", enabled=False)
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path / "metrics.jsonl", [1, 2], board=tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("train/loss")] == [(1, 1.3333), (2, 2.3333)]
