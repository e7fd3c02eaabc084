"""The placement benchmark's memory and traffic are exact; its times are not tested.

`tests/test_readme.py` runs the benchmark itself, in processes of its own.
"""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks
from tools.bench import teacher_placement
from tools.bench.placement import rank_side
from tools.bench.placement.figures import (
    BODY,
    HEAD,
    STUDENT,
    Holding,
    Measured,
    RankMemory,
    Side,
    Sizes,
    Spent,
    Traffic,
    one_copy,
)
from tools.bench.placement.report import report

pytestmark = pytest.mark.slow  # whole runs on several ranks

SIZES = Sizes(teacher="4x256", student="1x64", vocab=1024, seq=16, batch=8, micro_batch=1)
TEACHER = one_copy(SIZES.teacher, SIZES.vocab)
KILOBYTE = 1024


def measured_on_rank(sizes: Sizes, side: Side) -> tuple[RankMemory, Traffic]:
    with rank_side.bench_rank(sizes, side) as answers:
        return answers["memory"](), answers["traffic"]()


def measured(side: Side, sizes: Sizes = SIZES) -> Measured:
    found = run_ranks(sizes.ranks, measured_on_rank, sizes, side)
    sent = Traffic(sum(traffic.hidden for _, traffic in found), sum(traffic.logits for _, traffic in found))
    return Measured([memory for memory, _ in found], [], sent)


def bodies(found: Measured) -> list[int]:
    return [rank.bytes_of(BODY) for rank in found.memory]


def assert_one_head_a_replica(found: Measured) -> None:
    assert [rank.bytes_of(HEAD) for rank in found.memory] == [TEACHER[HEAD]] * 4


def test_colocated_is_a_copy_a_rank() -> None:
    found = measured(Side("colocated"))
    assert bodies(found) == [TEACHER[BODY]] * 4
    assert found.host_bytes(BODY) == 4 * TEACHER[BODY]
    assert found.traffic == Traffic(0, 0)
    assert_one_head_a_replica(found)


def test_balanced_is_one_copy_in_even_parts() -> None:
    found = measured(Side("balanced"))
    assert max(bodies(found)) <= 1.1 / 4 * TEACHER[BODY]
    norms = 4 * 256 * (2 * 4 + 1)  # of 4 layers and the last: every tensor-parallel rank has them
    assert found.host_bytes(BODY) == sum(bodies(found)) == TEACHER[BODY] + norms
    assert_one_head_a_replica(found)


def test_gpu0_is_one_copy_on_one_rank() -> None:
    found = measured(Side("gpu0"))
    assert bodies(found) == [TEACHER[BODY], 0, 0, 0]
    assert_one_head_a_replica(found)
    elsewhere = 3 / 4 * SIZES.batch * SIZES.seq  # tokens whose student is not on rank 0
    assert found.traffic == Traffic(elsewhere * 256 * 4, elsewhere * 1024 * 4)


def test_cpu_is_one_copy_in_memory_that_all_ranks_map() -> None:
    found = measured(Side("cpu"))
    assert bodies(found) == [TEACHER[BODY]] * 4
    assert found.host_bytes(BODY) == TEACHER[BODY]
    # By the system's count too; the file is aligned by tensor and by page, and Pss is in whole kilobytes.
    assert sum(rank.pss_shared for rank in found.memory) == pytest.approx(TEACHER[BODY], abs=16 * KILOBYTE)
    assert_one_head_a_replica(found)


def test_cpu_not_shared_is_a_copy_a_rank() -> None:
    found = measured(Side("cpu", share=False))
    assert found.host_bytes(BODY) == 4 * TEACHER[BODY]
    assert [rank.pss_shared for rank in found.memory] == [0] * 4


def test_the_head_is_sharded_like_the_student() -> None:
    sizes = Sizes(**{**vars(SIZES), "ranks": 2, "student": "1x128", "student_layout": "2x1", "teacher_layout": "1x2"})
    found = measured(Side("balanced"), sizes)
    assert [rank.bytes_of(HEAD) for rank in found.memory] == [TEACHER[HEAD] / 2] * 2


def rank_memory(body: tuple[int, tuple[object, ...]], pss: int, pss_shared: int = 0) -> RankMemory:
    size, memory = body
    holdings = Holding(BODY, size, memory), Holding(HEAD, 8, (pss, "head")), Holding(STUDENT, 10, (pss, "student"))
    return RankMemory(holdings, pss, pss_shared)


def test_the_tables_have_each_goal_beside_its_figure() -> None:
    sizes = Sizes(ranks=2, teacher="2x128", student="1x128", vocab=128)
    body = one_copy(sizes.teacher, sizes.vocab)[BODY]
    steps = [[Spent(1.0, 0.1), Spent(2.0, 1.0)], [Spent(4.0, 0.4), Spent(2.0, 1.0)]]
    twice = [[Spent(2 * spent.seconds, spent.waiting) for spent in ranks] for ranks in steps]
    shared = ("file", 0)
    found = {
        Side("colocated"): Measured(
            [rank_memory((body, (rank, "body")), 10**6 + rank) for rank in range(2)], steps, Traffic(0, 0)
        ),
        Side("cpu"): Measured(
            [rank_memory((body, shared), 10**6 + rank, body // 2) for rank in range(2)], twice, Traffic(1000, 3000)
        ),
    }
    lines = report(found, sizes, {Side("cpu"): found[Side("cpu")]}, 512).splitlines()
    assert "| cpu: all ranks' tensors, Pss / body | 1.00, 1.00 | 1, 1 | | | |" in lines
    ratio = (2 * body + 36) / (body + 36)
    assert f"| colocated / cpu: in all | {ratio:.2f} | 520 / 160 | | | |" in lines
    assert "| cpu | 6.00 (4.00-8.00) | 2.00 (2.00-2.00) | 5% to 25% | 1 |" in lines
    assert "| 512 | 128 | cpu | 1 | 3 | 3 |" in lines
    (row,) = (line for line in lines if line.startswith("| cpu |") and "same for all" in line)
    assert row.endswith("| 1.0 / 1.0 | 2.0 |")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--rounds", "0"], "--rounds 0: must be positive"),
        (["--teacher-layout", "3x1"], "tensor_model_parallel_size=3"),
    ],
)
def test_a_run_that_cannot_be_is_refused(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        teacher_placement.main(argv)
    assert told in capsys.readouterr().err
