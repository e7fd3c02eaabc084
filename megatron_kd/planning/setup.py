"""What a plan is of: a distillation's values with the ranks and machines it is to run on, all numbers resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import InputError
from megatron_kd.placement.grid import TeacherGrid
from megatron_kd.placement.refusals import Strategy
from megatron_kd.placement.rounds import micro_batches_a_round
from megatron_kd.placement.strategies import placed_grid
from megatron_kd.planning.activations import Work

Device = Literal["cuda", "cpu"]

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A distillation on given ranks.

    Attributes:
        cfg, model, teacher: the configuration and its two models.
        student: the student's layout.
        ranks_per_machine: ranks that share a host's memory and its fast links.
        device: what a rank computes on.
        chunks: virtual pipeline chunks of a stage, 1 without.
        global_batch_size: sequences of a step.
        num_microbatches: of a rank and step.
        teacher_micro_batch_size: in sequences, outside `colocated`.
        padded_vocab_size: V, of both models.
        itemsize, teacher_itemsize: bytes of a weight or hidden state.
    """

    cfg: ConfigContainer
    model: GPTDistillationProvider
    teacher: GPTModelProvider
    student: TeacherGrid
    ranks_per_machine: int
    device: Device
    chunks: int
    global_batch_size: int
    num_microbatches: int
    teacher_micro_batch_size: int
    padded_vocab_size: int
    itemsize: int
    teacher_itemsize: int

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.student.tp * self.student.pp * self.student.dp

    @property
    def machines(self) -> int:
        """Number of machines."""
        return -(-self.world_size // self.ranks_per_machine)

    @property
    def tokens_per_step(self) -> int:
        """Of the global batch."""
        return self.global_batch_size * self.model.seq_length

    @property
    def distributed_optimizer(self) -> bool:
        """Whether optimizer state is divided over data-parallel ranks."""
        return self.cfg.ddp.use_distributed_optimizer

    @property
    def student_work(self) -> Work:
        """One micro-batch of the student on a rank."""
        return self._work(self.model, self.cfg.train.micro_batch_size, self.student.tp, self.itemsize)

    def teacher_work(self, strategy: Strategy) -> Work:
        """One micro-batch of the teacher on a rank."""
        colocated = strategy == "colocated"
        size = self.cfg.train.micro_batch_size if colocated else self.teacher_micro_batch_size
        return self._work(self.teacher, size, self.teacher_grid(strategy).tp, self.teacher_itemsize)

    def teacher_grid(self, strategy: Strategy) -> TeacherGrid:
        """Where the teacher's body is."""
        if strategy == "colocated":
            return self.student
        return placed_grid(self.model, strategy, self.world_size, self.ranks_per_machine, self.padded_vocab_size)

    def teacher_sequences(self, strategy: Strategy) -> int:
        """Sequences of a step that the busiest copy of the teacher runs."""
        return -(-self.global_batch_size // self.teacher_grid(strategy).dp)

    def round_share(self, strategy: Strategy) -> float:
        """The share of a step's micro-batches that is run and handed over at a time."""
        grid, rows = self.teacher_grid(strategy), self.cfg.train.micro_batch_size * self.student.dp
        size = self.teacher_micro_batch_size
        return micro_batches_a_round(self.num_microbatches, rows, grid.dp, size, grid.pp) / self.num_microbatches

    def forwards_a_round(self, strategy: Strategy) -> int:
        """Of the busiest copy of the teacher."""
        sequences = -(-self.teacher_sequences(strategy) * self.round_share(strategy) // 1)
        return int(-(-sequences // self.teacher_micro_batch_size))

    def _work(self, model: GPTModelProvider, sequences: int, tp: int, itemsize: int) -> Work:
        parallel = model.sequence_parallel and tp > 1
        return Work(sequences, self.model.seq_length, tp, parallel, itemsize, self.device)


def setup(
    cfg: ConfigContainer, world_size: int, *, ranks_per_machine: int | None = None, device: Device = "cuda"
) -> Setup:
    """Resolve a configuration without `problems` on `world_size` ranks.

    Args:
        cfg: the configuration.
        world_size: number of ranks.
        ranks_per_machine: ranks of one host; None: 8, or all ranks if they are fewer.
        device: what ranks compute on.

    Raises:
        InputError: there is no teacher, or no vocabulary size is known.
    """
    model = cfg.distillation
    if model is None:
        raise InputError("model has no teacher: a plan is of a distillation; give the recipe a GPTDistillationProvider")
    values = derived(cfg, world_size)
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    return Setup(
        cfg=cfg,
        model=model,
        teacher=model.teacher,
        student=TeacherGrid(tp, pp, values.data_parallel_size),
        ranks_per_machine=min(ranks_per_machine or 8, world_size),
        device=device,
        chunks=model.virtual_pipeline_model_parallel_size or 1,
        global_batch_size=values.global_batch_size,
        num_microbatches=values.num_microbatches,
        teacher_micro_batch_size=model.teacher_micro_batch_size or cfg.train.micro_batch_size,
        padded_vocab_size=values.padded_vocab_size,
        itemsize=ITEMSIZE[values.student_dtype],
        teacher_itemsize=ITEMSIZE[values.teacher_dtype or values.student_dtype],
    )
