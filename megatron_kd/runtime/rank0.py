"""Work that one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_kd.runtime.agreement import raised_together, rank_of_ranks

Answer = TypeVar("Answer")


def on_rank_0(work: Callable[[], Answer]) -> Answer:
    """What `work` returns on rank 0, on every rank; the others wait. It must pickle, and `work` not communicate.

    Raises:
        InputError, ...: that of rank 0, on every rank; see `raised_together`.
    """
    answer: list[Any] = [None]
    with raised_together():
        if rank_of_ranks()[0] == 0:
            answer[0] = work()
    if dist.is_initialized():
        dist.broadcast_object_list(answer, src=0)
    result: Answer = answer[0]
    return result
