"""`balanced`: the teacher is spread over all ranks, in a layout of its own."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem, divides
from megatron_kd.placement.even_split import even_split
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.refusals import apart
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.workload import Workload


class Balanced(Strategy):
    """As many copies as fit on all ranks, one if `model.teacher` has no sizes."""

    name = "balanced"

    def problems(
        self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None
    ) -> Iterator[Problem]:
        """Parallel sizes that do not divide the number of ranks."""
        yield from apart(cfg, model)
        copy = model.teacher.tensor_model_parallel_size * model.teacher.pipeline_model_parallel_size
        if world_size is not None and not divides(copy, world_size):
            sizes = "model.teacher.tensor_model_parallel_size model.teacher.pipeline_model_parallel_size"
            taken = f"one copy of the teacher takes {copy} ranks, of which {world_size} are not a multiple"
            yield Problem.of(cfg, sizes, taken, "change its sizes")

    def grid(self, run: Workload) -> Grid:
        """Copies of the sizes that `model.teacher` gives, on all ranks; without sizes, one copy over all of them."""
        tp, pp = run.teacher.tensor_model_parallel_size, run.teacher.pipeline_model_parallel_size
        if tp == pp == 1:
            width = run.padded_vocab_size
            return Grid(*even_split(run.teacher, run.world_size, run.ranks_per_machine, padded_vocab_size=width))
        return Grid(tp, pp, max(run.world_size // (tp * pp), 1))

    def for_unknown_memory(self, world_size: int) -> bool:
        """On several devices: each then holds as little of the teacher as can be without streaming it."""
        return world_size > 1
