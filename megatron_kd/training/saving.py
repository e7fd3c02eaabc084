"""What the loop does about checkpoints, and the run folder that they are in. Every rank must call each function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from megatron_kd.checkpoints.contents import step_of
from megatron_kd.checkpoints.folders import checkpoint_path, delete_leftovers
from megatron_kd.errors import NumericalFault, Preempted
from megatron_kd.huggingface.export import export_hf
from megatron_kd.runtime.exit_code import reserve_exit_code
from megatron_kd.runtime.lock import LOCK, only_run_in
from megatron_kd.runtime.space import not_written
from megatron_kd.runtime.timeouts import group_timeouts
from megatron_kd.runtime.together import on_rank_0, raised_together, rank_of_ranks
from megatron_kd.training.best import better, write_best
from megatron_kd.training.progress import Progress
from megatron_kd.training.run_checkpoint import draft_checkpoint, finish_checkpoint, save_checkpoint
from megatron_kd.training.run_state import Run


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Have the run folder to this run, and clean up after one that was killed. Every rank must call this."""
    with ExitStack() as held:
        with raised_together():
            if rank_of_ranks()[0] == 0:
                with not_written(run_dir / LOCK):
                    held.enter_context(only_run_in(run_dir))
                reserve_exit_code(run_dir)
                delete_leftovers(run_dir / "checkpoints")
        yield


def save(run: Run, progress: Progress) -> None:
    """Save in the foreground, or begin to in the background, and tell once it is done."""

    def saved(path: Path) -> None:
        progress.say(f"saved {path}")
        if _is_exported(run, path):
            progress.say(f"exported {_export(run, path)}")

    def finished(path: Path) -> None:
        finish_checkpoint(run, path)
        saved(path)

    with _at_a_checkpoint(run):
        if not run.cfg.checkpoint.async_save:
            saved(save_checkpoint(run))
            return
        run.saving.wait()
        if (draft := draft_checkpoint(run)) is not None:
            run.saving.start(draft, finished)
        else:
            saved(checkpoint_path(run.derived.checkpoints_dir, run.step))


def poll_saving(run: Run) -> None:
    """Complete the save that is under way, if all ranks have written, or raise what one of them met."""
    if run.saving.pending:
        with _at_a_checkpoint(run):
            run.saving.poll()


@contextmanager
def saving_ends(run: Run) -> Iterator[None]:
    """A run does not end before its last save has, unless it ends with an error that not all ranks know of."""
    try:
        yield
    except (NumericalFault, Preempted):  # on all ranks at the same step
        with _at_a_checkpoint(run):
            run.saving.wait()
        raise
    with _at_a_checkpoint(run):
        run.saving.wait()


def _at_a_checkpoint(run: Run) -> AbstractContextManager[None]:
    run.doing.enter("saving a checkpoint")
    return group_timeouts(run.cfg.dist.checkpoint_timeout_s, after=run.cfg.dist.step_timeout_s)


def keep_best(run: Run, result: dict[str, float]) -> None:
    """Take in the means of a validation of now."""
    best = better(run.best, run.step, result)
    if best != run.best:
        run.best = best
        on_rank_0(lambda: write_best(run.derived.best_file, best))


def _is_exported(run: Run, checkpoint: Path) -> bool:
    """Whether a checkpoint that was saved is to be a Hugging Face folder, too; there is no time where all must stop."""
    wanted = run.cfg.checkpoint.save_hf
    return bool(wanted) and (step_of(checkpoint) == run.derived.train_iters or (wanted == "each" and not run.stopping))


def _export(run: Run, checkpoint: Path) -> str:
    """Write a checkpoint as a Hugging Face folder, by one rank while the others wait; one that is there stays."""
    folder = run.derived.run_dir / "hf" / checkpoint.name
    return on_rank_0(lambda: str(folder if folder.exists() else export_hf(checkpoint, folder, verified=True)))
