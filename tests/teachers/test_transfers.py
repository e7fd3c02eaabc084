"""Every position of every micro-batch comes from exactly one rank, which has it."""

from __future__ import annotations

import itertools

import pytest
import torch

from megatron_kd.placement.grid import Grid
from megatron_kd.placement.wanted import WantedLayer
from megatron_kd.teachers.transfers import Exchange, StudentRank

SEQ = 8


def students(tp: int, pp: int, dp: int) -> tuple[StudentRank, ...]:
    """megatron-core's order: tensor, then data, then pipeline."""
    return tuple(StudentRank(rank, rank // tp % dp, rank // (tp * dp), rank % tp) for rank in range(tp * pp * dp))


def exchange(
    student: tuple[int, int, int], grid: Grid, *, shards: tuple[bool, bool], rows: tuple[int, int, int]
) -> Exchange:
    student_parallel, teacher_parallel = shards
    num_microbatches, micro_batch_size, teacher_micro_batch_size = rows
    return Exchange(
        grid=grid,
        students=students(*student),
        layers=(
            WantedLayer("decoder.final_layernorm", "decoder.final_layernorm", grid.pp - 1, frozenset({student[1] - 1})),
            WantedLayer("decoder.layers.0.mlp", "decoder.layers.0.mlp", 0, frozenset(range(student[1]))),
        ),
        num_microbatches=num_microbatches,
        micro_batch_size=micro_batch_size,
        teacher_micro_batch_size=teacher_micro_batch_size,
        seq_length=SEQ,
        student_shards=student[0] if student_parallel else 1,
        teacher_shards=grid.tp if teacher_parallel else 1,
    )


def everything(e: Exchange) -> dict[tuple[int, str, int, int], torch.Tensor]:
    """The contents of each teacher rank after its forwards: the number of each (sequence, position)."""
    held = {}
    numbers = torch.arange(SEQ).view(-1, 1) + 100 * torch.arange(e.num_sequences + e.teacher_micro_batch_size)
    for replica, stage, shard in itertools.product(range(e.grid.dp), range(e.grid.pp), range(e.grid.tp)):
        rank, first = e.grid.rank(replica, stage, shard), e.share(replica).start
        for layer, forward in itertools.product(e.layers, range(e.forwards(replica))):
            if layer.teacher_stage == stage:
                start = first + forward * e.teacher_micro_batch_size
                block = numbers[:, start : start + e.teacher_micro_batch_size]
                if e.teacher_shards > 1:
                    block = block.chunk(e.teacher_shards)[shard]
                held[rank, layer.name, forward, shard] = block
    return held


@pytest.mark.parametrize("shards", itertools.product([False, True], repeat=2))
@pytest.mark.parametrize("rows", [(2, 2, 1), (3, 2, 4), (1, 3, 2), (4, 1, 3)])
@pytest.mark.parametrize("student", [(1, 1, 4), (2, 1, 2), (1, 2, 2), (2, 2, 1)])
@pytest.mark.parametrize("grid", [Grid(1, 1, 4), Grid(2, 2, 1), Grid(4, 1, 1), Grid(1, 1, 1, 3)])
def test_every_position_arrives_once_and_is_the_right_one(grid, student, rows, shards) -> None:
    e = exchange(student, grid, shards=shards, rows=rows)
    held = everything(e)
    for target in e.students:
        for layer in e.layers:
            if target.stage not in layer.student_stages:
                assert not any(p.layer == layer.name for source in range(4) for p in e.pieces(source, target))
                continue
            _check_arrivals(e, held, target, layer.name)


def _check_arrivals(e: Exchange, held: dict, target: StudentRank, layer: str) -> None:
    positions = SEQ // e.student_shards
    first = target.shard * positions if e.student_shards > 1 else 0
    got = torch.full((e.num_microbatches, positions, e.micro_batch_size), -1)
    for source in range(e.grid.first_rank, e.grid.first_rank + e.grid.size):
        for piece in e.pieces(source, target):
            if piece.layer == layer:
                shard = e.grid.coordinate(source).shard
                where = got[piece.micro_batch][piece.target]
                assert where.shape == piece.positions_and_rows
                assert (where == -1).all(), "a position comes twice"
                got[piece.micro_batch][piece.target] = held[source, layer, piece.forward, shard][piece.source]
    numbers = torch.arange(e.num_microbatches * e.micro_batch_size) + target.replica * e.sequences_each
    expected = torch.arange(first, first + positions).view(1, -1, 1) + 100 * numbers.view(e.num_microbatches, 1, -1)
    assert torch.equal(got, expected)


def test_equal_layouts_need_no_traffic() -> None:
    e = exchange((2, 1, 2), Grid(2, 1, 2), shards=(False, False), rows=(2, 2, 4))
    assert not any(list(e.pieces(s, t)) for s in range(4) for t in e.students if t.rank != s)
