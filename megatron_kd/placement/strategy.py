"""A strategy: where the teacher lives during a run. `registry.py` lists them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.workload import Workload


class Strategy(ABC):
    """A choice of `model.teacher_device_strategy`, in a file of its own.

    The rest of the package asks a strategy for these facts and never compares its name. The defaults describe a
    teacher whose body the ranks of `grid` hold and run at the beginning of a step, whose head is with the student's,
    and whose hidden states are handed over from the body's ranks to the head's. A new strategy provides, in its file:

    - `name`, `problems` and `grid`. A teacher without ranks of its own in the run, because its outputs come from disk
      or from a service, has a grid of no copies (`dp=0`);
    - the methods in which it differs from the defaults.

    Beside that file it needs its place in `registry.STRATEGIES` and its name in `TeacherPlacement`'s annotation, which
    is what users may write (a test compares the two). Only a strategy that is built in a new way needs more: a fact
    beside `in_student_pipeline`, and the builder in `teachers/` that `build_teacher` selects by it.

    Attributes:
        name: as users write it.
        in_student_pipeline: the teacher's stages are the student's and run with them, on the student's micro-batches.
            Hidden states of both models travel together, and none are handed over.
        in_host_memory: the teacher's body is in each machine's memory, and not on its devices.
    """

    name: ClassVar[str]
    in_student_pipeline: ClassVar[bool] = False
    in_host_memory: ClassVar[bool] = False

    @abstractmethod
    def problems(
        self, cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int | None
    ) -> Iterator[Problem]:
        """Why it cannot support the run of `cfg`, whose model is `model`; a `world_size` of None is not checked."""

    @abstractmethod
    def grid(self, run: Workload) -> Grid:
        """The ranks of the teacher's body."""

    def for_unknown_memory(self, world_size: int) -> bool:
        """Whether `auto` takes it on `world_size` devices of unknown memory; true for one strategy only."""
        return False

    def body_bytes(self, run: Workload, stage: int) -> int:
        """Bytes of the body on the device of a rank that has its stage `stage`."""
        return run.body_bytes(run.teacher_shard(self.grid(run), stage))

    def head_bytes(self, run: Workload, student_stage: int) -> int:
        """Bytes of the teacher's head on a rank of the student's stage `student_stage`."""
        if student_stage < run.student.pp - 1:
            return 0
        return run.padded_vocab_size // run.student.tp * run.teacher.hidden_size * run.teacher_itemsize

    def host_bytes(self, run: Workload) -> int:
        """Bytes of the teacher in a machine's host memory, outside its ranks' own."""
        return 0

    def handed_over_bytes(self, run: Workload) -> float:
        """Bytes of the teacher's hidden states that a rank sends to others in a step, on average.

        Each shard of the student gets all positions, or its part of them under sequence parallelism.
        """
        layers = sum(run.layers_read_on(stage) for stage in range(run.student.pp))
        return layers * run.teacher_hidden_bytes * run.receivers / run.world_size

    def streamed_bytes(self, run: Workload) -> float:
        """Bytes of the teacher's weights that a rank copies from host memory to its device in a step."""
        return 0.0
