"""The folder of a run, which belongs to one run at a time, and stays as it is until a start is accepted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_kd.checkpoints.contents import complete_checkpoints
from megatron_kd.checkpoints.folders import delete_leftovers
from megatron_kd.config.run_config import RUN_CONFIG, dump_config, save_run_config
from megatron_kd.runtime.exit_code import reserve_exit_code
from megatron_kd.runtime.lock import LOCK, only_run_in
from megatron_kd.runtime.space import not_written
from megatron_kd.runtime.together import raised_together, rank_of_ranks
from megatron_kd.training.run_state import Run


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this run. Every rank must call this."""
    with ExitStack() as held:
        with raised_together():
            if rank_of_ranks()[0] == 0:
                with not_written(run_dir / LOCK):
                    held.enter_context(only_run_in(run_dir))
        yield


def accept(run: Run) -> None:
    """Make the folder that of this attempt: nothing refuses the run any more. For rank 0.

    What a killed attempt left is deleted, and `run_config.yaml` is rewritten, unless there is nothing left to do. The
    earlier one is kept beside it, where no checkpoint has it.
    """
    run_dir, file = run.derived.run_dir, run.derived.run_config_file
    reserve_exit_code(run_dir)
    delete_leftovers(run.derived.checkpoints_dir)
    if run.step >= run.derived.train_iters and file.exists():
        return
    with not_written(file):
        _keep_earlier(file, run.derived.checkpoints_dir, dump_config(run.cfg))
        save_run_config(run.cfg, file)


def _keep_earlier(file: Path, checkpoints: Path, new: str) -> None:
    """Rename a `run_config.yaml` that says something else than `new` and than each checkpoint."""
    earlier = file.read_text(encoding="utf-8") if file.exists() else new
    written = (path / RUN_CONFIG for path in complete_checkpoints(checkpoints).values())
    if earlier == new or any(path.read_text(encoding="utf-8") == earlier for path in written if path.is_file()):
        return
    number = 1
    while (kept := file.with_name(f"run_config.earlier-{number}.yaml")).exists():
        number += 1
    file.rename(kept)
