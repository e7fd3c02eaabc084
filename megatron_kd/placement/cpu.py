"""`cpu`: the teacher in host memory, one copy per machine, with which every rank computes its share of the batch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.refusals import whole
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload

RESIDENT_LAYERS = 2  # on a device that layers are streamed to: one computes while the next arrives


class Cpu(Strategy):
    """A copy for each rank; those of one machine are the same memory, unless `model.share_teacher` is off."""

    name = "cpu"
    in_host_memory = True

    def problems(
        self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None
    ) -> Iterator[Problem]:
        """A layout of the teacher's own."""
        yield from whole(cfg, model, self.name)

    def grid(self, run: Workload) -> Grid:
        """All ranks, each with a copy."""
        return Grid(tp=1, pp=1, dp=run.world_size)

    def for_unknown_memory(self, world_size: int) -> bool:
        """On one device, which holds as little as can be."""
        return world_size == 1

    def body_bytes(self, run: Workload, stage: int) -> int:
        """The layers that are on the device at a time; a CPU uses them where they are."""
        if run.device == "cpu":
            return 0
        return min(RESIDENT_LAYERS, run.teacher.num_layers) * (_layers_bytes(run) // run.teacher.num_layers)

    def host_bytes(self, run: Workload) -> int:
        """The whole body, once or once for each rank of a machine."""
        copies = 1 if run.model.share_teacher else run.ranks_per_machine
        return copies * run.body_bytes(run.teacher_shard(Grid(1, 1, 1), 0))

    def streamed_bytes(self, run: Workload) -> float:
        """All layers, once for each micro-batch of the teacher."""
        if run.device == "cpu":
            return 0.0
        forwards = -(-self.grid(run).share(run.global_batch_size) // run.teacher_micro_batch_size)
        return float(forwards * _layers_bytes(run))


def _layers_bytes(run: Workload) -> int:
    """Bytes of the body without its embedding, which is looked up on the host."""
    whole = run.teacher_shard(Grid(1, 1, 1), 0)
    return run.body_bytes(whole) - whole.embedding * run.teacher_itemsize
