"""A strategy that only one file knows is planned like the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.registry import strategy_named
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.estimate import estimate
from megatron_kd.planning.memory import BODY, HANDED, HEAD, WORKING
from tests.planning.workloads import workload_of
from tests.tiny import tiny_config


class OnDisk(Strategy):
    """A teacher whose hidden states were written to disk before: no rank has a part of its body."""

    name = "on disk"

    def problems(self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None) -> Iterator[str]:
        yield from ()

    def grid(self, run: Workload) -> Grid:
        return Grid(tp=1, pp=1, dp=0)

    def handed_over_bytes(self, run: Workload) -> float:
        return 0.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_teacher_that_no_rank_runs(device: str, tmp_path: Path) -> None:
    run = workload_of(tiny_config(tmp_path, pp=2, micro_batch_size=2), 4, device=device)
    found, elsewhere = estimate(run, OnDisk()), estimate(run, strategy_named("gpu0"))
    assert [rank.teacher_stage for rank in found.ranks] == [None, None]
    for rank in found.ranks:
        assert all(moment.parts[BODY] == moment.parts[WORKING] == 0 for moment in rank.moments)
    # Head and hidden states are where the losses are, as with any teacher outside the student's pipeline.
    for part in (HEAD, HANDED):
        assert found.ranks[1].moments[0].parts[part] == elsewhere.ranks[-1].moments[0].parts[part] > 0
    assert found.traffic.hand_over == found.traffic.as_logits == found.traffic.streamed == found.teacher_bubble == 0
    assert found.traffic.total < elsewhere.traffic.total
    assert found.seconds < elsewhere.seconds
