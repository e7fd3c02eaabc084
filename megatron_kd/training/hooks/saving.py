"""Checkpoints: every `checkpoint.save_interval` steps, after the last one, when asked to stop, and of the best."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from megatron_kd.checkpoints.background import BackgroundSave
from megatron_kd.checkpoints.folders import checkpoint_path
from megatron_kd.errors import NumericalFault, Preempted
from megatron_kd.runtime.timeouts import group_timeouts
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.run_checkpoint import draft_checkpoint, finish_checkpoint, save_checkpoint
from megatron_kd.training.run_state import Run


class Saving(Hook):
    """Saves, in the foreground or in the background, and announces `after_save` once a checkpoint is complete."""

    def __init__(self) -> None:
        self._background = BackgroundSave()

    def before_step(self, loop: Loop) -> None:
        """Complete a save in the background once all ranks have written, or raise the error of one of them."""
        if self._background.pending:
            with _at_a_checkpoint(loop.run):
                self._background.poll()

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Save, or begin to in the background, if it is due."""
        settings = loop.run.cfg.checkpoint
        is_best = settings.save_best and loop.run.best.is_of(loop.run.step)
        if settings.save and (loop.stopping or loop.is_due(settings.save_interval) or is_best):
            with _at_a_checkpoint(loop.run):
                self._save(loop, in_background=settings.async_save)

    def close(self, loop: Loop, error: BaseException | None) -> None:
        """Wait for the last save, unless the run ends with an error that not all ranks know of."""
        if error is None or isinstance(error, (NumericalFault, Preempted)):  # on all ranks after the same step
            with _at_a_checkpoint(loop.run):
                self._background.wait()

    def _save(self, loop: Loop, *, in_background: bool) -> None:
        self._background.wait()
        if not in_background:
            loop.announce(Hook.after_save, save_checkpoint(loop.run))
        elif (draft := draft_checkpoint(loop.run)) is not None:
            self._background.start(draft, partial(_finish, loop))
        else:
            loop.announce(Hook.after_save, checkpoint_path(loop.run.derived.checkpoints_dir, loop.run.step))


def _finish(loop: Loop, checkpoint: Path) -> None:
    finish_checkpoint(loop.run, checkpoint)
    loop.announce(Hook.after_save, checkpoint)


def _at_a_checkpoint(run: Run) -> AbstractContextManager[None]:
    run.doing.enter("saving a checkpoint")
    return group_timeouts(run.cfg.dist.checkpoint_timeout_s, after=run.cfg.dist.step_timeout_s)
