"""A distillation on given ranks with all its numbers worked out: what strategies are asked about, and plans are of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.stages import LayerPlace, place_of
from megatron_kd.errors import InputError
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.parameters import Parameters, shard_parameters
from megatron_kd.placement.rounds import micro_batches_a_round
from megatron_kd.placement.wanted import Readers, read_on, readers

Device = Literal["cuda", "cpu"]

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A distillation on given ranks, wherever its teacher lives.

    Attributes:
        cfg, model: the configuration and its student, with the teacher.
        student: the student's ranks.
        ranks_per_machine: ranks that share a host's memory and its fast links.
        device: what a rank computes on.
        chunks: virtual pipeline chunks of a stage, 1 without.
        global_batch_size: sequences of a step.
        num_microbatches: of a rank and step.
        teacher_micro_batch_size: in sequences, of a teacher that runs outside the student's pipeline.
        padded_vocab_size: V, of both models.
        itemsize, teacher_itemsize: bytes of a weight or hidden state.
    """

    cfg: ConfigContainer
    model: GPTDistillationProvider
    student: Grid
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
    def teacher(self) -> GPTModelProvider:
        """The teacher's provider."""
        return self.model.teacher

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.student.size

    @property
    def machines(self) -> int:
        """Number of machines."""
        return -(-self.world_size // self.ranks_per_machine)

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one forward of the student."""
        return self.cfg.train.micro_batch_size

    @property
    def tokens_per_step(self) -> int:
        """Of the global batch."""
        return self.global_batch_size * self.model.seq_length

    @property
    def student_hidden_bytes(self) -> float:
        """Bytes of the student's hidden states between two layers, of a step."""
        return float(self.tokens_per_step * self.model.hidden_size * self.itemsize)

    @property
    def teacher_hidden_bytes(self) -> float:
        """The same of the teacher's."""
        return float(self.tokens_per_step * self.teacher.hidden_size * self.teacher_itemsize)

    @property
    def receivers(self) -> int:
        """How often a group of the student's shards receives one hidden state: each shard all, or its part."""
        return 1 if self.model.sequence_parallel else self.student.tp

    @cached_property
    def readers(self) -> Readers:
        """The teacher's layers that the losses read, and where."""
        return readers(self.model.kd_config.intermediate_layer_pairs, self._student_place)

    def pairs_on(self, stage: int) -> int:
        """How many layer pairs have their loss on a stage of the student."""
        places = (self._student_place(pair[0]) for pair in self.model.kd_config.intermediate_layer_pairs)
        return sum(place is not None and place.stage == stage for place in places)

    def layers_read_on(self, stage: int) -> int:
        """How many of the teacher's layers the losses of a stage of the student read."""
        return len(read_on(self.readers, stage))

    def micro_batches_a_round(self, teacher: Grid) -> int:
        """The student's micro-batches whose hidden states a teacher on ranks of its own makes and sends at a time."""
        return micro_batches_a_round(
            self.num_microbatches,
            self.micro_batch_size * self.student.dp,
            teacher.dp,
            self.teacher_micro_batch_size,
            teacher.pp,
        )

    def teacher_shard(self, grid: Grid, stage: int) -> Parameters:
        """The parameters of a stage of the teacher, on one rank of `grid`."""
        return shard_parameters(
            self.teacher, padded_vocab_size=self.padded_vocab_size, tp=grid.tp, pp=grid.pp, stage=stage
        )

    def body_bytes(self, shard: Parameters) -> int:
        """Bytes of a part of the teacher's body; quantised matrices: a byte per weight, a float32 scale per row."""
        if self.model.teacher_quantization is None:
            return shard.body * self.teacher_itemsize
        others = shard.body - shard.matrix_elements
        return shard.matrix_elements + 4 * shard.matrix_rows + others * self.teacher_itemsize

    def _student_place(self, layer: str) -> LayerPlace | None:
        return place_of(layer, num_layers=self.model.num_layers, stages=self.student.pp, chunks=self.chunks)


def workload(
    cfg: ConfigContainer, values: Derived, *, ranks_per_machine: int | None = None, device: Device = "cuda"
) -> Workload:
    """The numbers of a configuration without `problems`.

    Args:
        cfg: the configuration.
        values: what follows from it on the ranks that it is to run on.
        ranks_per_machine: ranks of one host; None: 8, or all ranks if they are fewer.
        device: what ranks compute on.

    Raises:
        InputError: there is no teacher.
    """
    model = cfg.distillation
    if model is None:
        raise InputError("model has no teacher: a plan needs one; give the recipe a GPTDistillationProvider")
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    return Workload(
        cfg=cfg,
        model=model,
        student=Grid(tp, pp, values.data_parallel_size, copies_first=True),
        ranks_per_machine=min(ranks_per_machine or 8, values.world_size),
        device=device,
        chunks=model.chunks,
        global_batch_size=values.global_batch_size,
        num_microbatches=values.num_microbatches,
        teacher_micro_batch_size=model.teacher_micro_batch_size or cfg.train.micro_batch_size,
        padded_vocab_size=values.padded_vocab_size,
        itemsize=ITEMSIZE[values.student_dtype],
        teacher_itemsize=ITEMSIZE[values.teacher_dtype or values.student_dtype],
    )
