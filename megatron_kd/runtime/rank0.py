"""Work that one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from megatron_kd.errors import InputError


def on_rank_0(work: Callable[[], str]) -> str:
    """What `work` returns on rank 0, on every rank; the others wait.

    Raises:
        InputError: that of rank 0, on every rank.
    """
    answer: list[Any] = [None, None]  # the result, or what is wrong
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except InputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    result, wrong = answer
    if wrong is not None:
        raise InputError(wrong)
    return result
