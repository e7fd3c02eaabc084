"""`balanced`: the teacher is spread over all ranks, in a layout of its own."""

from __future__ import annotations

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.even_split import even_split
from megatron_kd.placement.grid import TeacherGrid


def balanced_grid(
    model: GPTDistillationProvider, world_size: int, ranks_per_machine: int, padded_vocab_size: int
) -> TeacherGrid:
    """The sizes that `model.teacher` gives, and copies as ranks are left; without sizes, one copy over all ranks."""
    tp, pp = model.teacher.tensor_model_parallel_size, model.teacher.pipeline_model_parallel_size
    if tp == pp == 1:
        sizes = even_split(model.teacher, world_size, ranks_per_machine, padded_vocab_size=padded_vocab_size)
        return TeacherGrid(*sizes)
    return TeacherGrid(tp, pp, max(world_size // (tp * pp), 1))
