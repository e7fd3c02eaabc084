"""How far a long job over files has come: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_SECONDS_BETWEEN_LINES = 5.0


class ByteProgress:
    """A context manager to be called with the bytes done and the bytes there are. Writes to standard error.

    Nothing is started before the first call, by which time worker processes have been forked: the bar has a thread
    of its own, and a fork would leave its locks as they happen to be.
    """

    def __init__(self, title: str, stream: TextIO | None = None):
        self.title, self.stream = title, stream or sys.stderr
        self._bar: Progress | None = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes have been processed."""
        if self.stream.isatty():
            self._show_bar(done, total)
        else:
            self._print_line(done, total)

    def _show_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn(self.title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(file=self.stream))
            self._bar.add_task(self.title, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _print_line(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._printed < _SECONDS_BETWEEN_LINES or not done:
            return
        self._printed = now
        left = (now - self._started) / done * (total - done)
        print(
            f"{self.title}: {done / 1e6:.1f} of {total / 1e6:.1f} MB, {left:.0f} s left", file=self.stream, flush=True
        )
