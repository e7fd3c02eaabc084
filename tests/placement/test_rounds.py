"""A step's hand-over is divided into rounds that keep the teacher's pipeline busy, and no longer ones."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_kd.placement.rounds import FORWARDS_A_STAGE, micro_batches_a_round
from tests.ranks import run_ranks
from tests.teachers.test_strategies import placed_config
from tests.tiny import train_and_read


@pytest.mark.parametrize(
    ("num_microbatches", "sequences", "copies", "teacher_rows", "stages", "expected"),
    [
        (64, 1, 1, 1, 1, 1),  # nothing to keep busy
        (64, 1, 1, 1, 8, 8 * FORWARDS_A_STAGE),
        (16, 1, 1, 1, 8, 16),  # there are no more
        (64, 8, 1, 2, 4, FORWARDS_A_STAGE),
        (64, 4, 4, 1, 1, 1),
        (64, 2, 4, 1, 1, 2),  # each copy has something to do
    ],
)
def test_sizes(
    num_microbatches: int, sequences: int, copies: int, teacher_rows: int, stages: int, expected: int
) -> None:
    assert micro_batches_a_round(num_microbatches, sequences, copies, teacher_rows, stages) == expected


def held_at_once(cfg: Any) -> tuple[list[int], list[dict[str, Any]]]:
    """On a rank: how many micro-batches each hand-over was of, and the run's records."""
    from megatron_kd.teachers.handover import Handover

    seen: list[int] = []
    original = Handover.__call__

    def count(self: Handover, produced: Any) -> Any:
        seen.append(self.exchange.num_microbatches)
        return original(self, produced)

    Handover.__call__ = count  # type: ignore[method-assign]
    try:
        return seen, train_and_read(cfg)
    finally:
        Handover.__call__ = original  # type: ignore[method-assign]


def test_a_run_in_rounds_is_the_run_in_one(tmp_path) -> None:
    student = {"micro_batch_size": 1}
    whole = placed_config(tmp_path / "whole", student, {"strategy": "gpu0", "micro_batch_size": 8})
    parts = placed_config(tmp_path / "parts", student, {"strategy": "gpu0", "micro_batch_size": 3})
    one, *_ = run_ranks(1, held_at_once, whole)
    three, *_ = run_ranks(1, held_at_once, parts)
    assert one[0] == [8] * 6  # five steps and an evaluation
    assert three[0] == [3, 3, 2] * 6
    for record, other in zip(three[1], one[1], strict=True):
        assert record["logits_loss"] == pytest.approx(other["logits_loss"], rel=1e-5)


def test_more_copies_than_sequences(tmp_path) -> None:
    cfg = placed_config(tmp_path, {"tp": 2, "pp": 2, "micro_batch_size": 1}, {"strategy": "cpu", "share": False})
    cfg.train.global_batch_size = 2
    seen, records = run_ranks(4, held_at_once, cfg)[0]
    assert seen == [2] * 6 and len(records) == 6
