"""Evaluation on held-out data, every `validation.eval_interval` steps and after the last one."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_kd.runtime.signals import StopSignals
from megatron_kd.training.held_out import evaluate
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.run_data import RunData


class Evaluation(Hook):
    """Evaluates the current weights, and announces `after_evaluation`.

    A run that is asked to stop before or during an evaluation skips it: there may be no time for it. The attempt that
    resumes the run makes up for it.

    Args:
        data: of the run.
        stop: the signals of this rank.
    """

    def __init__(self, data: RunData, stop: StopSignals) -> None:
        self._data, self._stop = data, stop

    def before_run(self, loop: Loop) -> None:
        """Evaluate if the checkpoint is without the evaluation of its step: the previous attempt had no time for it."""
        last, step = loop.run.best.last, loop.run.step
        counted = loop.stopped_early or (last is not None and last.step == step)
        if step > 0 and _is_due(loop) and not counted:
            self._evaluate(loop)

    def after_step(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Evaluate if it is due."""
        if _is_due(loop):
            self._evaluate(loop)

    def _evaluate(self, loop: Loop) -> None:
        loop.run.doing.enter("evaluation")
        values = None if loop.stopping else evaluate(loop.run, self._data.validation(), self._stop)
        if values is None:
            loop.stopping = loop.owes_evaluation = True
            return
        loop.evaluation = values
        loop.announce(Hook.after_evaluation, values)


def _is_due(loop: Loop) -> bool:
    settings = loop.run.cfg.validation
    return settings.eval_iters > 0 and loop.is_due(settings.eval_interval)
