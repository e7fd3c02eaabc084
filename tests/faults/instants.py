"""Instants of a run, on one rank, and something done there: `kill` it, send it a signal, put a NaN into its step.

An instant is before an operation on files, on coming to a phase of a step, before a call of one of the package's
functions, or some milliseconds after the start: each counted, so that a run without faults tells how many there are.

    with at_instant(Instant("call", 812), run_dir, do=killed(note)):
        train(cfg)
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest import mock

import megatron_kd
from megatron_kd.config.container import ConfigContainer
from tests.faults.writes import Operation, operations
from tests.hooks import On

Kind = Literal["operation", "phase", "call", "time"]
Do = Callable[[str], None]  # called at an instant, with its location

KINDS: tuple[Kind, ...] = ("operation", "phase", "call", "time")
_PACKAGE = os.path.dirname(megatron_kd.__file__)
_FIRST = "alone_in"  # the first call that counts: the ranks are up, and what a run does to its folder begins


@dataclass(frozen=True)
class Instant:
    """One moment of a run on one rank.

    Attributes:
        kind: of what is counted.
        number: of it, from 0; milliseconds for "time".
        part: only operations on paths, and calls of functions, whose names have it in them count.
        phase: only entries into this phase count, where it is given.
        step: only what is entered in this step counts; -1 for any.
        torn: the operation is left half done; not for a process that continues.
    """

    kind: Kind
    number: int = 0
    part: str = ""
    phase: str = ""
    step: int = -1
    torn: bool = True


def killed(note: Path) -> Do:
    """Writes down where it is, and ends this process as `kill -9` does."""
    return sent(signal.SIGKILL, note)


def sent(number: int, note: Path, pause_s: float = 0) -> Do:
    """Waits for `pause_s` seconds, writes down where it is, and sends this process a signal."""

    def do(where: str) -> None:
        time.sleep(pause_s)
        with note.open("a") as file:
            file.write(f"{where}\n")
        os.kill(os.getpid(), number)

    return do


@contextmanager
def at_instant(instant: Instant, run_dir: Path, do: Do) -> Iterator[None]:
    """Call `do` once at an instant of the block."""
    with {"operation": _operation, "phase": _phase, "call": _call, "time": _time}[instant.kind](instant, run_dir, do):
        yield


def counted(cfg: ConfigContainer) -> dict[str, int]:
    """On a rank: run `cfg`; how many instants of each kind it has, and how many calls until its first step."""
    from megatron_kd.training.train import train

    run_dir, counts = Path(cfg.logger.run_dir), dict.fromkeys((*KINDS, "resume"), 0)

    def first_step(run: Any) -> None:
        counts["resume"] = counts["call"]

    def count(kind: str) -> None:
        counts[kind] += 1

    start = time.monotonic()
    with ExitStack() as held:
        held.enter_context(operations(run_dir, lambda _: count("operation")))
        held.enter_context(_phases(lambda *_: count("phase")))
        held.enter_context(_calls(lambda _: bool(count("call"))))
        train(cfg, [On(before_run=first_step)])
    return {**counts, "time": int(1000 * (time.monotonic() - start))}


@contextmanager
def _operation(instant: Instant, run_dir: Path, do: Do) -> Iterator[None]:
    left = [instant.number]

    def act(operation: Operation) -> None:
        if instant.part in str(operation.path):
            left[0] -= 1
            if left[0] == -1:
                if instant.torn:
                    operation.half()
                do(f"{operation.name} {operation.path.name}")

    with operations(run_dir, act):
        yield


@contextmanager
def _phase(instant: Instant, run_dir: Path, do: Do) -> Iterator[None]:
    left = [instant.number]

    def entered(phase: str, step: int) -> None:
        if instant.phase in ("", phase) and instant.step in (-1, step):
            left[0] -= 1
            if left[0] == -1:
                do(f"step {step}, {phase}")

    with _phases(entered):
        yield


@contextmanager
def _call(instant: Instant, run_dir: Path, do: Do) -> Iterator[None]:
    left = [instant.number]

    def called(frame: FrameType) -> bool:
        left[0] -= instant.part in frame.f_code.co_name
        if left[0] == -1:
            do(frame.f_code.co_name)
        return left[0] < 0

    with _calls(called):
        yield


@contextmanager
def _time(instant: Instant, run_dir: Path, do: Do) -> Iterator[None]:
    timer = threading.Timer(instant.number / 1000, do, [f"{instant.number} ms"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _phases(entered: Callable[[str, int], Any]) -> Iterator[None]:
    from megatron_kd.runtime.watch import Doing

    enter = Doing.enter

    def enter_and_tell(doing: Doing, phase: str, step: int | None = None) -> None:
        enter(doing, phase, step)
        entered(phase, doing.step)

    with mock.patch.object(Doing, "enter", enter_and_tell):
        yield


@contextmanager
def _calls(called: Callable[[FrameType], bool]) -> Iterator[None]:
    """Before each call of a function of the package in this thread, until `called` returns true."""
    begun = [False]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE):
            begun[0] = begun[0] or frame.f_code.co_name == _FIRST
            if begun[0] and called(frame):
                sys.setprofile(None)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
