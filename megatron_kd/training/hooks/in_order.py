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
    """Those that every run has, and the user's.

    First those that only take note of a step, then those that do something after it, whose events reach the others
    at once. So each hook hears of a step before it hears of the evaluation and the save that follow it.
    """
    return (
        Metrics(),  # what is shown is on the disk already
        Progress(),
        BestValidation(),
        HuggingFaceExport(),
        *extra,
        Evaluation(data, stop),
        Saving(),  # last: a checkpoint holds the best validation, that of its own step included
    )
