"""Ranks and their parts of a model, in both orders."""

from __future__ import annotations

import pytest

from megatron_kd.placement.grid import Coordinate, Grid
from tests.ranks import run_ranks

GRIDS = [Grid(2, 2, 2), Grid(2, 3, 1, first_rank=1), Grid(2, 2, 2, copies_first=True), Grid(1, 2, 3, copies_first=True)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_rank_has_one_part(grid: Grid) -> None:
    ranks = range(grid.first_rank, grid.first_rank + grid.size)
    parts = [grid.coordinate(rank) for rank in ranks]
    assert [grid.rank(*part) for part in parts if part is not None] == list(ranks)
    assert len(set(parts)) == grid.size == grid.tp * grid.pp * grid.dp
    assert grid.coordinate(grid.first_rank - 1) is grid.coordinate(ranks[-1] + 1) is None


def test_stages_of_a_copy_are_neighbours_unless_copies_come_first() -> None:
    assert Grid(1, 2, 2).coordinate(1) == Coordinate(replica=0, stage=1, shard=0)
    assert Grid(1, 2, 2, copies_first=True).coordinate(1) == Coordinate(replica=1, stage=0, shard=0)


def parts_of_the_student(tp: int, pp: int) -> Coordinate:
    """On a rank: its part, by its process groups."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=1) as layout:
        return Coordinate(layout.dp.rank, layout.pp.rank, layout.tp.rank)


@pytest.mark.slow
def test_copies_first_is_megatron_cores_order() -> None:
    grid = Grid(2, 2, 2, copies_first=True)
    assert run_ranks(8, parts_of_the_student, 2, 2) == [grid.coordinate(rank) for rank in range(8)]


def test_shares_of_a_batch() -> None:
    assert [Grid(1, 1, copies).share(5) for copies in (1, 2, 5, 8)] == [5, 3, 1, 1]


def test_without_copies_no_rank_has_a_part() -> None:
    nowhere = Grid(1, 1, 0)
    assert nowhere.size == nowhere.share(8) == 0
    assert nowhere.stage(0) is None
