"""The process groups of a teacher that has a parallel layout of its own."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_kd.placement.grid import TeacherGrid
from megatron_kd.runtime.layout import Axis, Layout


def create_teacher_layout(grid: TeacherGrid, student: Layout) -> Layout | None:
    """Make the process groups of a teacher in the student's world, each rank of which must call this.

    Returns:
        This rank's place in the teacher's layout; None on a rank that holds no part of it.
    """
    groups = HyperCommGrid([grid.tp, 1, grid.pp, grid.dp], ["tp", "cp", "pp", "dp"], rank_offset=grid.first_rank)
    found = ProcessGroupCollection()
    for axis in ("tp", "cp", "pp", "dp"):
        setattr(found, axis, groups.create_pg([axis]))
    found.mp = groups.create_pg(["tp", "pp"])
    found.dp_cp = groups.create_pg(["cp", "dp"])
    found.tp_cp = groups.create_pg(["tp", "cp"])
    alone = dist.new_group([student.rank], use_local_synchronization=True)
    if grid.coordinate(student.rank) is None:
        return None
    # The teacher's two embeddings are never tied by communication: its head is elsewhere. There are no experts.
    found.embd = found.pos_embd = found.pp
    found.ep, found.expt_tp, found.expt_dp = alone, found.tp, found.dp
    return Layout(
        tp=Axis.of(found.tp),
        pp=Axis.of(found.pp),
        dp=Axis.of(found.dp),
        world=student.world,
        groups=found,
        device=student.device,
    )
