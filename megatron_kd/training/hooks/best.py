"""The best validation of a run, kept in its state and in `run_dir/best.json`, and the end of a run without better."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from megatron_kd.checkpoints.contents import step_of
from megatron_kd.checkpoints.folders import checkpoint_path
from megatron_kd.messages import going_on_without
from megatron_kd.runtime.files import replace_text
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.best_validation import Measured
from megatron_kd.training.hooks.hook import Hook, Loop
from megatron_kd.training.run_state import Run


class BestValidation(Hook):
    """Keeps `run.best`, which checkpoints hold, and `best.json` with it; reports that the run ends early."""

    def before_run(self, loop: Loop) -> None:
        """Write the file: it may be missing, or show a step that was lost."""
        _write(loop.run)
        if loop.stopped_early:
            cure = "raise validation.patience to train on"
            loop.announce(Hook.message, f"this run has {_stopped(loop.run)}; nothing is trained; {cure}")

    def after_evaluation(self, loop: Loop, values: Mapping[str, float]) -> None:
        """Count the validation. One that counted no token has no metrics, and says nothing."""
        run = loop.run
        if run.best.metric not in values:
            return
        run.best = run.best.with_validation(run.step, values[run.best.metric])
        resumed_from = loop.resumption.checkpoint
        if resumed_from is not None and step_of(resumed_from) == run.step:
            run.best = run.best.with_checkpoint(run.step)  # a validation that the attempt before had no time for
        _write(run)
        if loop.stopped_early:
            loop.announce(Hook.message, _stopped(run))

    def after_save(self, loop: Loop, checkpoint: Path) -> None:
        """Write the file: the best may have its checkpoint now."""
        _write(loop.run)


def write_best(file: Path, metric: str, best: Measured | None, checkpoints: Path) -> None:
    """Make the file name a validation and its checkpoint, null where that is not complete.

    Without a validation, as after a resume from before the first one, there is no file. A failing disk is reported and
    ends no run: checkpoints hold the record, and the next start writes the file again.
    """
    with going_on_without(file):
        if best is None:
            file.unlink(missing_ok=True)
            return
        checkpoint = checkpoint_path(checkpoints, best.step)
        saved = str(checkpoint) if checkpoint.is_dir() else None
        content = {"metric": metric, "value": best.value, "step": best.step, "checkpoint": saved}
        replace_text(file, json.dumps(content) + "\n")


def _write(run: Run) -> None:
    values, best = run.derived, run.best
    on_rank_0(lambda: write_best(values.best_file, best.metric, best.best, values.checkpoints_dir))


def _stopped(run: Run) -> str:
    best, patience = run.best, run.cfg.validation.patience
    assert best.best is not None, "the first validation is the best one"
    found = f"best {best.metric} {best.best.value:.6g} after step {best.best.step}"
    validations = "validation" if best.waited == 1 else f"{best.waited} validations"
    since = f"no better in the {validations} since (validation.patience={patience})"
    return f"stopped early after step {run.step}: {found}, {since}"
