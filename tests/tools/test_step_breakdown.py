"""The clock of the step benchmark, and the table it prints. `tests/test_readme.py` runs the benchmark itself."""

from __future__ import annotations

import pytest

from tools.bench import step_breakdown
from tools.bench.step_breakdown import Clock, report


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only when a test adds to it."""
    time = [0.0]
    monkeypatch.setattr(step_breakdown.time, "perf_counter", lambda: time[0])
    return time


def test_the_time_of_an_inner_part_is_not_the_outer_ones(now: list[float]) -> None:
    clock = Clock()

    def spend(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        spend(1)
        clock.timed("inner", spend)(10)
        spend(2)

    clock.timed("outer", outer)()
    spend(5)
    clock.stop()
    spend(100)
    assert clock.seconds == {"outer": 3, "inner": 10, step_breakdown._LOOP: 5}


def test_a_part_that_raises_ends(now: list[float]) -> None:
    clock = Clock()

    def fail() -> None:
        now[0] += 1
        raise ValueError

    with pytest.raises(ValueError):
        clock.timed("part", fail)()
    now[0] += 2
    clock.stop()
    assert clock.seconds["part"] == 1


def test_starting_forgets_the_warm_up(now: list[float]) -> None:
    clock = Clock()
    now[0] += 7
    clock.start()
    clock.timed("part", lambda: None)()
    assert clock.total() == 0


def test_the_table_adds_up() -> None:
    clock = Clock()
    clock.seconds.update({"teacher forward": 0.5, "student forward": 0.2, "reading the batch": 0.3})
    lines = report(clock, [10.0, 30.0, 20.0], steps=10, tokens=100).splitlines()
    assert lines[0] == "logged tokens/s: first step 10, median 20, last step 20"
    assert lines[1] == "tokens/s over 10 steps, all included: 1000"
    assert lines[5:] == [
        "| teacher forward | 50.00 | 50.0% |",
        "| student forward | 20.00 | 20.0% |",
        "| everything else | 30.00 | 30.0% |",
        "| - reading the batch | 30.00 | 30.0% |",
    ]


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step_breakdown.main(["--steps", "5"])
    assert "--steps 5: must be more than the 5 steps of warming up" in capsys.readouterr().err
