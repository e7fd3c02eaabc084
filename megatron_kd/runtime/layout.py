"""This rank's position in the run: its process groups, its coordinates and its device.

megatron-core keeps process groups in a module of globals (`parallel_state`). Only this module sets them up and reads
them; everything else takes a `Layout` as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from megatron_kd.runtime import cpu_backend


@dataclass(frozen=True)
class Axis:
    """One dimension of parallelism, seen from this rank."""

    group: ProcessGroup
    size: int
    rank: int

    @classmethod
    def of(cls, group: ProcessGroup) -> Axis:
        """The axis of a process group."""
        return cls(group=group, size=group.size(), rank=group.rank())


@dataclass(frozen=True)
class Layout:
    """Process groups by dimension (tensor, pipeline, data) and the device of this rank.

    `world` is all ranks that run together, whatever they hold. `chunks` is the number of parts that each pipeline
    stage's layers are cut into: more than 1 with a virtual pipeline, in which chunk c of every stage comes before
    chunk c + 1 of the first.
    """

    tp: Axis
    pp: Axis
    dp: Axis
    world: Axis
    groups: ProcessGroupCollection
    device: torch.device
    chunks: int = 1

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the final norm and the output layer, hence the losses."""
        return self.pp.rank == self.pp.size - 1

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return self.world.rank

    @property
    def world_size(self) -> int:
        """The number of ranks in the world."""
        return self.world.size


def create_layout(
    *,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    virtual_pipeline_model_parallel_size: int | None = None,
    device: torch.device,
) -> Layout:
    """Set up megatron-core's process groups over the initialised world and describe this rank's position.

    Args:
        tensor_model_parallel_size: ranks that share each layer.
        pipeline_model_parallel_size: stages the layers are divided into. What is left is data parallel.
        virtual_pipeline_model_parallel_size: parts that each stage's layers are cut into; None for one.
        device: the device this rank computes on.
    """
    cpu_backend.install()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_model_parallel_size,
        # Groups for host tensors beside NCCL's; on a CPU the groups are gloo's already.
        create_gloo_process_groups=device.type != "cpu",
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return Layout(
        tp=Axis.of(groups.tp),
        pp=Axis.of(groups.pp),
        dp=Axis.of(groups.dp_cp),
        world=Axis.of(torch.distributed.group.WORLD),
        groups=groups,
        device=device,
        chunks=virtual_pipeline_model_parallel_size or 1,
    )


def destroy_layout() -> None:
    """Destroy megatron-core's process groups."""
    parallel_state.destroy_model_parallel()
