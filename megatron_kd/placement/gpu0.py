"""`gpu0`: the whole teacher on one rank, `model.teacher_rank`; the others send tokens and receive hidden states."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.refusals import whole
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload


class Gpu0(Strategy):
    """One copy on one rank, which runs the whole global batch."""

    name = "gpu0"

    def problems(
        self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None
    ) -> Iterator[Problem]:
        """A layout of the teacher's own, and a rank that there is not."""
        yield from whole(cfg, model, self.name)
        if world_size is not None and model.teacher_rank >= world_size:
            cure = f"choose one of 0 to {world_size - 1}"
            yield Problem.of(cfg, "model.teacher_rank", f"there are {world_size} ranks", cure)

    def grid(self, run: Workload) -> Grid:
        """One copy on one rank."""
        return Grid(tp=1, pp=1, dp=1, first_rank=run.model.teacher_rank)
