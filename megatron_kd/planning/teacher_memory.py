"""The teacher's bytes on a rank: its parts, and what its forward and the hand-over of its hidden states hold."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.planning.activations import forward_working, student_work
from megatron_kd.planning.scenario import Scenario


@dataclass(frozen=True)
class TeacherMemory:
    """The teacher on a rank of the student's stage `stage`, which has the stage `body_stage` of the body, or none."""

    scenario: Scenario
    stage: int
    body_stage: int | None

    @property
    def body(self) -> int:
        """Of the body, on the device."""
        return 0 if self.body_stage is None else self.scenario.strategy.body_bytes(self.scenario.run, self.body_stage)

    @property
    def head(self) -> int:
        """Of the head."""
        return self.scenario.strategy.head_bytes(self.scenario.run, self.stage)

    @property
    def working(self) -> int:
        """Temporary memory of a forward of the body."""
        if self.body_stage is None:
            return 0
        run, grid, work = self.scenario.run, self.scenario.grid, self.scenario.teacher_work
        working = forward_working(run.teacher, work)
        if grid.pp > 1 and not self.scenario.strategy.in_student_pipeline:
            working += 2 * work.hidden(run.teacher.hidden_size)  # received and sent
        if run.model.teacher_quantization:
            working += run.teacher_shard(grid, self.body_stage).largest_matrix * run.teacher_itemsize
        return working

    @property
    def read(self) -> int:
        """Hidden states of a micro-batch that the losses of this rank read."""
        run = self.scenario.run
        held = student_work(run).held_tokens * run.teacher.hidden_size * run.teacher_itemsize
        return run.layers_read_on(self.stage) * held

    @property
    def received(self) -> int:
        """Hidden states of a step that are handed over to this rank, before the student's first forward."""
        return 0 if self.scenario.strategy.in_student_pipeline else self.read * self.scenario.run.num_microbatches

    @property
    def produced(self) -> int:
        """Outputs of a round that losses elsewhere will read."""
        here = [layer for layer in self.scenario.wanted if layer.teacher_stage == self.body_stage]
        each = self.scenario.teacher_work.hidden(self.scenario.run.teacher.hidden_size)
        return len(here) * self.scenario.forwards_a_round * each

    @property
    def sent(self) -> int:
        """Of these, what this rank sends: where every shard has all positions, its part of them."""
        shards = 1 if self.scenario.teacher_work.sequence_parallel else self.scenario.grid.tp
        return self.produced // shards

    @property
    def arrives_in_pieces(self) -> bool:
        """Whether a micro-batch of hidden states comes from several forwards or ranks, to be joined here."""
        run = self.scenario.run
        return self.scenario.grid.tp > 1 or run.teacher_micro_batch_size % run.micro_batch_size != 0
