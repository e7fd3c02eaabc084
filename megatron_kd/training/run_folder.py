"""The folder of a run, which belongs to one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_kd.checkpoints.folders import delete_leftovers
from megatron_kd.runtime.exit_code import reserve_exit_code
from megatron_kd.runtime.lock import LOCK, only_run_in
from megatron_kd.runtime.space import not_written
from megatron_kd.runtime.together import raised_together, rank_of_ranks


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this run, and clean up after one that was killed. Every rank must call this."""
    with ExitStack() as held:
        with raised_together():
            if rank_of_ranks()[0] == 0:
                with not_written(run_dir / LOCK):
                    held.enter_context(only_run_in(run_dir))
                reserve_exit_code(run_dir)
                delete_leftovers(run_dir / "checkpoints")
        yield
