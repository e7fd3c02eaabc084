"""An error that one rank finds is raised on all of them, so that none waits for the one that left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from megatron_kd.errors import InputError


@contextmanager
def raised_together() -> Iterator[None]:
    """Every rank must enter and leave the block, which must not communicate.

    Raises:
        InputError: on every rank, what the lowest rank that found something wrong has found.
    """
    problem: str | None = None
    try:
        yield
    except InputError as error:
        problem = str(error)
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, problem)
    first = next((text for text in found if text is not None), None)
    if first is not None:
        raise InputError(first) from None
