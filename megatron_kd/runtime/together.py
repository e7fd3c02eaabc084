"""Collective actions: an error on one rank is raised on all of them, and one rank works for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_kd.errors import (
    CheckpointCorrupt,
    CheckpointNotSaved,
    InputError,
    LostRank,
    RunFileNotWritten,
    RunFolderInUse,
)

# The class of a rank's error on the other ranks: the first of these that it is an instance of.
_SHARED = (RunFolderInUse, InputError, CheckpointCorrupt, CheckpointNotSaved, RunFileNotWritten)

Value = TypeVar("Value")
Answer = TypeVar("Answer")


def rank_of_ranks() -> tuple[int, int]:
    """This rank and the number of ranks; a process without a process group is the only one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def from_all(value: Value, group: ProcessGroup | None = None) -> list[Value]:
    """The values of all ranks of `group` (by default of all ranks), in order, on each of them. All must call this."""
    if not dist.is_initialized():
        return [value]
    values: list[Value | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values  # type: ignore[return-value]


def to_rank_0(value: Value) -> list[Value] | None:
    """The values of all ranks, in order, on rank 0; None on the others. Every rank must call this."""
    if not dist.is_initialized():
        return [value]
    values: list[Value | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values  # type: ignore[return-value]


@contextmanager
def raised_together() -> Iterator[None]:
    """Raise an error of the block on every rank, so that no rank waits for one that has failed.

    Every rank must enter and leave the block, which must not communicate: a rank that raised would leave the others
    waiting. It works without process groups, too.

    Raises:
        InputError, CheckpointCorrupt, CheckpointNotSaved, RunFileNotWritten, RunFolderInUse: on every rank, the error
            of the lowest rank that has one.
        LostRank: another rank failed with an error of any other class, which it raises itself.
    """
    problem: tuple[int, str] | None = None  # which of _SHARED; -1 for none of them
    unexpected: Exception | None = None
    try:
        yield
    except _SHARED as error:
        problem = next(index for index, kind in enumerate(_SHARED) if isinstance(error, kind)), str(error)
    except Exception as error:
        problem, unexpected = (-1, f"{type(error).__name__}: {error}"), error
    found = from_all(problem)
    if unexpected is not None:
        raise unexpected
    for rank, theirs in enumerate(found):
        if theirs is not None:
            kind, text = theirs
            raise (LostRank(rank, "work that ranks do together", text) if kind < 0 else _SHARED[kind](text)) from None


def on_rank_0(work: Callable[[], Answer]) -> Answer:
    """Run `work` on rank 0 and return its result on every rank. It must pickle, and `work` must not communicate.

    Raises:
        InputError, ...: the error of rank 0, on every rank; see `raised_together`.
    """
    answer: list[Any] = [None]
    with raised_together():
        if rank_of_ranks()[0] == 0:
            answer[0] = work()
    if dist.is_initialized():
        dist.broadcast_object_list(answer, src=0)
    result: Answer = answer[0]
    return result
