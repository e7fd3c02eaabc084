"""The ranks that are running: the workload they share, and the process groups of a teacher with its own layout."""

from __future__ import annotations

import os

import torch.distributed as dist
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.workload import Workload, workload
from megatron_kd.runtime.layout import Axis, Layout


def running_workload(cfg: ConfigContainer, derived: Derived, layout: Layout) -> Workload:
    """The distillation of `cfg` on the ranks that are running, whose student has `layout`."""
    return workload(
        cfg,
        derived,
        ranks_per_machine=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device="cuda" if layout.device.type == "cuda" else "cpu",
    )


def create_teacher_layout(grid: Grid, student: Layout) -> Layout | None:
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
