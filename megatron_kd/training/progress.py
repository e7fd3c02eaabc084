"""Showing a run to a person: a progress bar on a terminal, plain lines elsewhere, rank 0 only."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

_SHOWN = (
    "loss",
    "logits_loss",
    "intermediate_loss",
    "lm_loss",
    "teacher_kl",
    "teacher_top1_agreement",
    "teacher_top5_agreement",
    "perplexity",
)


class Progress:
    """Reports steps and evaluations.

    Args:
        style: "auto" (a bar on a terminal, else plain), "bar", "plain" or "off".
        total: number of steps of the whole run.
        done: number of steps already done by an earlier attempt.
    """

    def __init__(self, style: str, total: int, done: int) -> None:
        self._style = ("bar" if sys.stderr.isatty() else "plain") if style == "auto" else style
        self._total, self._start, self._done = total, time.monotonic(), done
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._style == "bar":
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, values: Mapping[str, float], *, logged: bool) -> None:
        """Show that `step` steps are done; plain output shows logged steps only."""
        text = f"{values['tokens_per_second']:.0f} tokens/s  {_losses(values)}  lr {values['lr']:.3g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif self._style == "plain" and logged:
            print(f"step {step}/{self._total}  {text}  ETA {self._eta(step)}", flush=True)

    def say(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.print(text)
        elif self._style == "plain":
            print(text, flush=True)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Show the result of an evaluation."""
        self.say(f"validation after {step} steps  {_losses(values)}")

    def _eta(self, step: int) -> str:
        seconds = (time.monotonic() - self._start) / max(step - self._done, 1) * (self._total - step)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"


def _losses(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {values[name]:.4f}" for name in _SHOWN if name in values)
