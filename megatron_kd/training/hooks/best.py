"""The best validation of a run, kept in its state and in `run_dir/best.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from megatron_kd.messages import going_on_without
from megatron_kd.runtime.files import replace_text
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.run_state import Best, Run


class BestValidation(Hook):
    """Keeps `run.best`, which checkpoints hold, and `best.json` with it."""

    def before_run(self, loop: Loop) -> None:
        """Write the file: it may be missing, or show a step that was lost."""
        _write(loop.run)

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Update both if the loss is the lowest so far."""
        best = better(loop.run.best, loop.run.step, values)
        if best != loop.run.best:
            loop.run.best = best
            _write(loop.run)


def better(best: Best | None, step: int, values: Mapping[str, float]) -> Best | None:
    """`best`, or the validation after `step` steps if its loss is lower. NaN is never lower."""
    loss = values["loss"]
    return Best(step, loss) if loss == loss and (best is None or loss < best.loss) else best


def write_best(file: Path, best: Best | None) -> None:
    """Make the file say `best`. None, as after a resume from before the first validation, leaves no file.

    A failing disk is reported and ends no run: checkpoints hold the record, and the next start writes the file again.
    """
    with going_on_without(file):
        if best is None:
            file.unlink(missing_ok=True)
        else:
            replace_text(file, json.dumps(asdict(best)) + "\n")


def _write(run: Run) -> None:
    on_rank_0(lambda: write_best(run.derived.best_file, run.best))
