"""A workload with its teacher under one strategy: what memory, traffic and time are estimated of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_kd.placement.grid import Grid
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.wanted import WantedLayer, wanted_layers
from megatron_kd.placement.workload import Workload
from megatron_kd.planning.activations import Work


@dataclass(frozen=True)
class Scenario:
    """See the module."""

    run: Workload
    strategy: Strategy

    @cached_property
    def grid(self) -> Grid:
        """The ranks of the teacher's body."""
        return self.strategy.grid(self.run)

    @cached_property
    def wanted(self) -> tuple[WantedLayer, ...]:
        """The teacher's layers that the losses read."""
        return wanted_layers(self.run.readers, self.run.teacher.num_layers, self.grid)

    @property
    def teacher_work(self) -> Work:
        """One micro-batch of the teacher on a rank."""
        run = self.run
        sequences = run.micro_batch_size if self.strategy.in_student_pipeline else run.teacher_micro_batch_size
        return Work.of(run, run.teacher, sequences=sequences, tp=self.grid.tp, itemsize=run.teacher_itemsize)

    @property
    def teacher_sequences(self) -> int:
        """Sequences of a step that the busiest copy of the teacher runs."""
        return self.grid.share(self.run.global_batch_size)

    @property
    def round_share(self) -> float:
        """The share of a step's micro-batches that is run and handed over at a time."""
        return self.run.micro_batches_a_round(self.grid) / self.run.num_microbatches

    @property
    def forwards_a_round(self) -> int:
        """Of the busiest copy of the teacher."""
        sequences = -(-self.teacher_sequences * self.round_share // 1)
        return int(-(-sequences // self.run.teacher_micro_batch_size))

    def stages(self, rank: int) -> tuple[int, int | None]:
        """The student's pipeline stage on a rank, and that of the teacher's body; None without a part of the body."""
        student = self.run.student.stage(rank)
        assert student is not None, "every rank has a part of the student"
        return student, self.grid.stage(rank)
