"""A rank that does not respond fails the others within the timeout of the phase they are in."""

from __future__ import annotations

import time

import pytest
import torch

from megatron_kd.runtime.start import running_ranks
from megatron_kd.runtime.timeouts import group_timeouts, set_group_timeouts
from tests.ranks import run_ranks


def wait_for_a_silent_rank(seconds: int) -> tuple[str, float]:
    """On a rank: rank 1 falls silent for a while; what rank 0 meets, and after how many seconds."""
    with running_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, seed=1, timeout_s=60) as layout:
        torch.distributed.barrier(group=layout.tp.group)
        set_group_timeouts(seconds)
        if layout.rank == 1:
            time.sleep(seconds + 3)
            return "", 0.0
        started = time.monotonic()
        try:
            torch.distributed.all_reduce(torch.ones(1), group=layout.tp.group)
        except RuntimeError as error:
            return str(error), time.monotonic() - started
        return "an answer", time.monotonic() - started


def leave_without_goodbye(seconds: int) -> tuple[str, float]:
    """As above; the helper's closing barrier has no time to fail in."""
    result = wait_for_a_silent_rank(seconds)
    torch.distributed.barrier = lambda *args, **kwargs: None
    return result


@pytest.mark.slow
def test_a_silent_rank_fails_the_collective_in_time() -> None:
    (message, seconds), _ = run_ranks(2, leave_without_goodbye, 2)
    assert "timed out" in message.lower()
    assert 1.5 < seconds < 4.5


def slow_answer_while_saving() -> float:
    """On a rank: rank 1 answers late, but within the longer timeout of a checkpoint."""
    with running_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, seed=1, timeout_s=60) as layout:
        total = torch.ones(1)
        set_group_timeouts(1)
        with group_timeouts(30, after=60):
            if layout.rank == 1:
                time.sleep(2)
            torch.distributed.all_reduce(total, group=layout.tp.group)
        return total.item()


@pytest.mark.slow
def test_a_longer_phase_has_a_longer_timeout() -> None:
    assert run_ranks(2, slow_answer_while_saving) == [2.0, 2.0]
