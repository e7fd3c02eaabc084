"""A disk of a few megabytes that is really there, and really full when a run saves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.hooks import On

FILLER = "filler"


@contextmanager
def small_disk(at: Path, megabytes: int = 64) -> Iterator[Path]:
    """A tmpfs of its own at `at`. Needs root, as the SLURM of the tests does."""
    at.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(disk: Path, left: int) -> None:
    """Write a file that leaves `left` bytes, in whole blocks."""
    state = os.statvfs(disk)
    with (disk / FILLER).open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), (state.f_bavail - left // state.f_frsize) * state.f_frsize)


def make_room(disk: Path) -> None:
    """Delete that file."""
    (disk / FILLER).unlink(missing_ok=True)


@contextmanager
def filled_at(disk: Path, step: int, left: int, *, checked: bool) -> Iterator[None]:
    """On a rank: rank 0 fills `disk` when the run saves after `step` steps.

    Args:
        left: bytes that are left free.
        checked: after the run has found room enough, as another program would; before, otherwise.
    """
    import torch.distributed as dist

    from megatron_kd.checkpoints import writing

    original = writing.refuse_full_disk

    def refuse_full_disk(final: Path, needed: int) -> None:
        here = dist.get_rank() == 0 and final.name == f"iter_{step:07d}"
        if here and not checked:
            fill(disk, left)
        original(final, needed)
        if here and checked:
            fill(disk, left)

    with mock.patch.object(writing, "refuse_full_disk", refuse_full_disk):
        yield


def full_between(disk: Path, full: int, room: int) -> On:
    """On a rank: rank 0 has no byte left from the start of step `full` to that of step `room`."""

    def fill_or_empty(run: Any) -> None:
        if run.layout.rank == 0 and run.step + 1 == full:
            fill(disk, 0)
        if run.layout.rank == 0 and run.step + 1 == room:
            make_room(disk)

    return On(before_step=fill_or_empty)
