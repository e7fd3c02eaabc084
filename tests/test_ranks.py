"""The multi-rank helper itself: it talks over gloo, and a rank that fails or dies fails the test."""

import os

import pytest
import torch

from tests.ranks import RankFailed, run_ranks


def _sum_of_ranks() -> float:
    value = torch.tensor([float(torch.distributed.get_rank() + 1)])
    torch.distributed.all_reduce(value)
    return value.item()


def _raise_on_rank_one() -> None:
    if torch.distributed.get_rank() == 1:
        raise ValueError("the reason")


def _die_on_rank_one() -> None:
    if torch.distributed.get_rank() == 1:
        os._exit(3)


def test_ranks_reduce_with_each_other() -> None:
    assert run_ranks(4, _sum_of_ranks) == [10.0] * 4


def test_a_raising_rank_fails_the_call_with_its_traceback() -> None:
    with pytest.raises(RankFailed, match="ValueError: the reason"):
        run_ranks(2, _raise_on_rank_one)


def test_a_dying_rank_fails_the_call_with_its_exit_code() -> None:
    with pytest.raises(RankFailed, match="exit code 3"):
        run_ranks(2, _die_on_rank_one)
