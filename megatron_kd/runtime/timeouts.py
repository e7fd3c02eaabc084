"""How long ranks wait for each other. Starting up and saving may take long; a training step may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import distributed_c10d


def set_group_timeouts(seconds: int) -> None:
    """Give every process group of this rank the same timeout, in seconds."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


@contextmanager
def group_timeouts(seconds: int, after: int) -> Iterator[None]:
    """Timeout `seconds` inside the block, `after` once it has ended."""
    set_group_timeouts(seconds)
    try:
        yield
    finally:
        set_group_timeouts(after)
