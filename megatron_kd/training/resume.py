"""Where a run continues: the checkpoint that `checkpoint.resume` names, or the newest that is as it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.folders import checkpoint_path, set_aside
from megatron_kd.checkpoints.reading import Verified, verify
from megatron_kd.checkpoints.saved_run import SavedRun, read_saved_run
from megatron_kd.checks.begun import another_run, changes, lost_saves
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import Problem
from megatron_kd.errors import CheckpointCorrupt, ConfigError, InputError
from megatron_kd.runtime.together import on_rank_0, rank_of_ranks
from megatron_kd.training.run_checkpoint import finish_checkpoint, load_checkpoint
from megatron_kd.training.run_state import Run


@dataclass(frozen=True)
class Begun:
    """A run that is to be continued. Nothing of it has been changed yet.

    Attributes:
        checkpoint: the one to continue from, every byte of which is as it was written.
        saved: what it says about the run.
        refused: why checkpoints of later steps cannot be read, by step.
    """

    checkpoint: Verified
    saved: SavedRun
    refused: Mapping[int, str]


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run continues from, None for a fresh start, and lines to report.

    Attributes:
        notes: about checkpoints that were refused.
        changes: of the configuration, which take effect from here on.
    """

    checkpoint: Path | None
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


def find_begun(cfg: ConfigContainer) -> Begun | None:
    """The run to continue, as `checkpoint.resume` says; None for a fresh start. Every rank must call this.

    Rank 0 lists the checkpoints. All ranks verify the same checkpoint together. With `auto`, one that is corrupt is
    passed over.

    Raises:
        InputError: `checkpoint.resume` is a step that was never saved, or the configuration describes another run.
        CheckpointCorrupt: the requested step cannot be read, or no step can.
    """
    wanted, folder = cfg.checkpoint.resume, Path(cfg.logger.run_dir) / "checkpoints"
    found = on_rank_0(lambda: complete_checkpoints(folder))
    refused: dict[int, str] = {}
    checkpoint: Verified | None = None
    if wanted == "auto":
        checkpoint, refused = _newest_valid(found)
    elif wanted != "never":
        if wanted not in found:
            raise InputError(
                f"checkpoint.resume={wanted}: no such checkpoint in {folder}; there are {list(found) or 'none'}"
            )
        checkpoint = verify(found[int(wanted)])
    saved = None if checkpoint is None else _saved(checkpoint.folder)
    left = [step for step in found if step not in refused]
    refuse(list(lost_saves(cfg, None if saved is None else saved.state.step, left)))
    if checkpoint is None or saved is None:
        return None
    refuse_another_run(cfg, saved)
    return Begun(checkpoint, saved, refused)


def refuse_another_run(cfg: ConfigContainer, saved: SavedRun) -> None:
    """Compare the configuration with that of the run which it is to continue. Every rank must call this.

    Raises:
        ConfigError: it is another run.
    """
    ranks = rank_of_ranks()[1]
    refuse(on_rank_0(lambda: list(another_run(cfg, saved, ranks))))  # reads files


def resume(run: Run, begun: Begun | None) -> Resumption:
    """Restore the state of the run that is continued, if there is one. Every rank must call this.

    A corrupt checkpoint that was passed over is set aside. A run that saves then deletes checkpoints beyond
    `checkpoint.most_recent_k`.

    Raises:
        InputError: the checkpoint belongs to another model.
        CheckpointCorrupt: its contents do not match its description.
    """
    if begun is None:
        return Resumption(None)
    folder = begun.checkpoint.folder
    of_best = load_checkpoint(run, begun.checkpoint, begun.saved)
    notes = on_rank_0(lambda: _set_aside(run, begun.refused))
    if run.cfg.checkpoint.save:
        finish_checkpoint(run, folder)  # the run may have been killed before it could, or keep fewer now
    lines = on_rank_0(lambda: changes_reported(run, begun.saved))
    return Resumption(folder, notes, (*lines, *of_best))


def changes_reported(run: Run, saved: SavedRun) -> tuple[str, ...]:
    """A line for each change that takes effect; none where no step is left that it could take effect from."""
    if run.step >= run.derived.train_iters:
        return ()
    found = changes(run.cfg, saved, run.layout.world_size)
    return tuple(f"{c.name}: {c.before} -> {c.after} takes effect from step {run.step + 1} on" for c in found)


def refuse(problems: list[Problem]) -> None:
    """Raise for problems, if there are any.

    Raises:
        ConfigError: all of them.
    """
    if problems:
        raise ConfigError(problems)


def _saved(folder: Path) -> SavedRun:
    saved = read_saved_run(folder)
    if saved is None:
        raise InputError(f"{folder}: holds weights alone, from which no run can continue")
    return saved


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


def _set_aside(run: Run, refused: Mapping[int, str]) -> tuple[str, ...]:
    """Make room for the steps that will be saved again. A run that does not save leaves all as it is."""
    notes = []
    for step, why in refused.items():
        path = checkpoint_path(run.derived.checkpoints_dir, step)
        kept = f"; it is now {set_aside(path)}" if run.cfg.checkpoint.save else ""
        notes.append(f"warning: the checkpoint of step {step} was refused: {why}{kept}")
    return tuple(notes)
