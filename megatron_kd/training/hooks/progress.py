"""Progress for the user: a bar on a terminal, plain lines elsewhere, on rank 0 only."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.hooks.step_line import evaluation_lines, step_line
from megatron_kd.training.opening import opening_lines

_TEXT = 80  # columns that the text beside a bar may take


class Progress(Hook):
    """Shows steps, evaluations, checkpoints and all messages."""

    def before_run(self, loop: Loop) -> None:
        """Show what is run, and from where."""
        run = loop.run
        style = run.cfg.logger.progress if run.layout.rank == 0 else "off"
        self._display = Display(style, run.derived.train_iters, run.step)
        for line in opening_lines(run, loop.resumption):
            self._display.say(line)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Show the step."""
        self._display.step(loop.run.step, values, logged=loop.is_due(loop.run.cfg.logger.log_interval))

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Show the evaluation."""
        self._display.evaluation(loop.run.step, values)

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        """Show where the checkpoint is."""
        self._display.say(f"saved {checkpoint}")

    def message(self, loop: Loop, text: str) -> None:
        """Show the text."""
        self._display.say(text)

    def close(self, loop: Loop, error: BaseException | None) -> None:
        """Leave the terminal as it was."""
        self._display.close()


class Display:
    """Reports steps and evaluations.

    Args:
        style: "auto" (a bar on a terminal, else plain), "bar", "plain" or "off".
        total: number of steps of the whole run.
        done: number of steps already done by an earlier attempt.
    """

    def __init__(self, style: str, total: int, done: int) -> None:
        self._style = ("bar" if sys.stdout.isatty() else "plain") if style == "auto" else style
        self._total, self._start, self._done = total, time.monotonic(), done
        self._bar: Any = None
        if self._style == "bar":
            from rich.progress import BarColumn, Progress, TextColumn

            room = _width() - _TEXT - 1
            columns = [TextColumn("{task.description}", markup=False)]
            self._bar = Progress(*columns, *([BarColumn(min(room, 40))] if room >= 10 else []))
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)

    def step(self, step: int, values: Mapping[str, float], *, logged: bool) -> None:
        """Show that `step` steps are done; plain output shows logged steps only."""
        left = (time.monotonic() - self._start) / max(step - self._done, 1) * (self._total - step)
        if self._bar is not None:
            text = step_line(step, self._total, values, left, min(_width(), _TEXT))
            self._bar.update(self._task, completed=step, description=text)
        elif self._style == "plain" and logged:
            print(step_line(step, self._total, values, left, _width()), flush=True)

    def say(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._style == "plain":
            print(text, flush=True)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Show the result of an evaluation."""
        for line in evaluation_lines(step, values, _width()):
            self.say(line)

    def close(self) -> None:
        """Show nothing more."""
        if self._bar is not None:
            self._bar.stop()


def _width() -> int:
    """Columns of the terminal, or of `COLUMNS`; 80 where the output goes elsewhere."""
    return shutil.get_terminal_size().columns
