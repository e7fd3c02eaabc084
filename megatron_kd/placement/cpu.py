"""`cpu`: the teacher in host memory, one copy a machine, from which every rank computes its share of the batch."""

from __future__ import annotations

from megatron_kd.placement.grid import TeacherGrid


def every_rank_grid(world_size: int) -> TeacherGrid:
    """Each rank runs a copy; `shared_memory` makes those of one machine the same memory."""
    return TeacherGrid(tp=1, pp=1, dp=world_size)
