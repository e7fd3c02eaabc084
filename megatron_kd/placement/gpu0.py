"""`gpu0`: the whole teacher on one rank, `model.teacher_rank`; the others send tokens and receive hidden states."""

from __future__ import annotations

from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.placement.grid import TeacherGrid


def one_rank_grid(model: GPTDistillationProvider) -> TeacherGrid:
    """One copy on one rank."""
    return TeacherGrid(tp=1, pp=1, dp=1, first_rank=model.teacher_rank)
