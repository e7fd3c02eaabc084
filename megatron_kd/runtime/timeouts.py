"""The timeout of all process groups. Starting and saving may take long; a training step may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d

_seconds: int | None = None  # as last set


def set_group_timeouts(seconds: int) -> None:
    """Set the timeout, in seconds, of every process group of this rank."""
    global _seconds
    _seconds = seconds
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def group_timeout() -> int | None:
    """The current timeout of process groups, in seconds; None before it was set."""
    return _seconds


def wait_for(work: dist.Work, backend: str) -> None:
    """Wait for a message from or to one rank, with the current timeout of process groups.

    gloo's point-to-point messages keep the timeout that their group was created with; NCCL's watchdog uses the current
    one.
    """
    if backend == "gloo" and _seconds is not None:
        work.wait(timedelta(seconds=_seconds))
    else:
        work.wait()


@contextmanager
def group_timeouts(seconds: int, after: int) -> Iterator[None]:
    """A context with the timeout `seconds`, and `after` once it has ended."""
    set_group_timeouts(seconds)
    try:
        yield
    finally:
        set_group_timeouts(after)
