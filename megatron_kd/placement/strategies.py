"""The ranks of the teacher under each strategy outside the student's pipeline; the plan and the run call the same."""

from __future__ import annotations

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.balanced import balanced_grid
from megatron_kd.placement.cpu import every_rank_grid
from megatron_kd.placement.gpu0 import one_rank_grid
from megatron_kd.placement.grid import TeacherGrid


def placed_grid(
    model: GPTDistillationProvider, strategy: str, world_size: int, ranks_per_machine: int, padded_vocab_size: int
) -> TeacherGrid:
    """The teacher's ranks under `balanced`, `gpu0` or `cpu`."""
    if strategy == "balanced":
        return balanced_grid(model, world_size, ranks_per_machine, padded_vocab_size)
    return one_rank_grid(model) if strategy == "gpu0" else every_rank_grid(world_size)
