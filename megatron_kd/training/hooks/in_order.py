"""The hooks of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_kd.runtime.signals import StopSignals
from megatron_kd.training.hooks.best import BestValidation
from megatron_kd.training.hooks.evaluation import Evaluation
from megatron_kd.training.hooks.hf_export import HuggingFaceExport
from megatron_kd.training.hooks.hook import Hook
from megatron_kd.training.hooks.metrics import Metrics
from megatron_kd.training.hooks.progress import Progress
from megatron_kd.training.hooks.saving import Saving
from megatron_kd.training.run_data import RunData


def hooks_in_order(data: RunData, stop: StopSignals, extra: Sequence[Hook]) -> tuple[Hook, ...]:
    """The built-in hooks and the user's.

    Hooks that only observe come first; then those that act after a step, and announce events to all others while
    they do. So every observer hears of a step before it hears of the evaluation and the checkpoint that follow it.
    """
    return (
        Metrics(),  # first: what the user sees is already in the file
        Progress(),
        BestValidation(),
        HuggingFaceExport(),
        *extra,
        Evaluation(data, stop),
        Saving(),  # last: the checkpoint holds the best validation, including that of its own step
    )
