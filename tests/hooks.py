"""The hook of the tests: it keeps a run, and does something to it at an event of its loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_kd.training.hooks.hook import Hook, Loop

Act = Callable[[Any], None]  # with the run


def _nothing(run: Any) -> None:
    pass


class On(Hook):
    """Calls functions with the run at events of its loop: `train(cfg, [On(before_step=poison)])`.

    Attributes:
        run: that of the loop, from its first event on.
    """

    def __init__(
        self,
        *,
        before_run: Act = _nothing,
        before_step: Act = _nothing,
        after_step: Act = _nothing,
        after_save: Act = _nothing,
    ) -> None:
        self._before_run, self._before_step, self._after_step, self._after_save = (
            before_run, before_step, after_step, after_save,
        )  # fmt: skip
        self.run: Any = None

    def before_run(self, loop: Loop) -> None:
        self.run = loop.run
        self._before_run(loop.run)

    def before_step(self, loop: Loop) -> None:
        self._before_step(loop.run)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        self._after_step(loop.run)

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        self._after_save(loop.run)
