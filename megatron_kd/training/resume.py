"""Where a run continues: the checkpoint that `checkpoint.resume` names, or the newest that is as it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.folders import set_aside
from megatron_kd.checkpoints.reading import Verified, verify
from megatron_kd.errors import CheckpointCorrupt, InputError
from megatron_kd.runtime.together import on_rank_0
from megatron_kd.training.run_checkpoint import finish_checkpoint, load_checkpoint
from megatron_kd.training.run_state import Run


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run continues from, None for a fresh start, and notes to report."""

    checkpoint: Path | None
    notes: tuple[str, ...] = ()


def resume(run: Run) -> Resumption:
    """Continue from the checkpoint that `checkpoint.resume` names. Every rank must call this.

    Rank 0 lists the checkpoints. All ranks verify the same checkpoint together before they change any state of the
    run. With `auto`, a corrupt checkpoint is set aside and the previous one is used. A run that saves then deletes
    checkpoints beyond `checkpoint.most_recent_k`, but not that of the best validation.

    Raises:
        InputError: `checkpoint.resume` is a step that was never saved, or the checkpoint belongs to another model.
        CheckpointCorrupt: the requested step cannot be read, or no step can.
    """
    wanted = run.cfg.checkpoint.resume
    folder = run.derived.checkpoints_dir
    found = on_rank_0(lambda: complete_checkpoints(folder))
    if wanted == "auto":
        checkpoint, refused = _newest_valid(found)
        at: int | None = checkpoint.state.step if checkpoint and checkpoint.state else None
    else:
        checkpoint, refused = None, {}
        at = None if wanted == "never" else int(wanted)
    _refuse_lost_saves(run, at, [step for step in found if step not in refused])
    if at is None:
        return Resumption(None)
    if at not in found:
        raise InputError(
            f"checkpoint.resume={wanted}: no such checkpoint in {folder}; there are {list(found) or 'none'}"
        )
    changes = load_checkpoint(run, checkpoint or verify(found[at]))
    notes = on_rank_0(lambda: _set_aside(run, found, refused))
    if run.cfg.checkpoint.save:
        finish_checkpoint(run, found[at])  # the run may have been killed before it could, or keep fewer now
    return Resumption(found[at], (*notes, *changes))


def _newest_valid(found: dict[int, Path]) -> tuple[Verified | None, dict[int, str]]:
    """The newest checkpoint that can be read, and why those after it cannot, by step."""
    refused: dict[int, str] = {}
    for step in sorted(found, reverse=True):
        try:
            return verify(found[step]), refused
        except CheckpointCorrupt as error:
            refused[step] = str(error)
    if refused:
        why = "; ".join(refused.values())
        raise CheckpointCorrupt(f"checkpoint.resume=auto: none of the checkpoints can be read; {why}")
    return None, refused


def _set_aside(run: Run, found: dict[int, Path], refused: dict[int, str]) -> tuple[str, ...]:
    """Make room for the steps that will be saved again. A run that does not save leaves all as it is."""
    notes = []
    for step, why in refused.items():
        kept = f"; it is now {set_aside(found[step])}" if run.cfg.checkpoint.save else ""
        notes.append(f"warning: the checkpoint of step {step} was refused: {why}{kept}")
    return tuple(notes)


def _refuse_lost_saves(run: Run, at: int | None, found: list[int]) -> None:
    """A checkpoint is never overwritten, so a run that would reach steps saved by another could not save its own."""
    later = [step for step in found if at is None or step > at]
    if later and run.cfg.checkpoint.save:
        raise InputError(
            f"checkpoint.resume={run.cfg.checkpoint.resume}: {run.derived.checkpoints_dir} already has checkpoints of "
            f"later steps, {later}, which are never overwritten; move them away, or choose another logger.run_dir"
        )
