"""`colocated`: the teacher is sharded like the student, and runs in the student's pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from megatron_kd.config.stages import place_of
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.placement.colocated import Colocated
from megatron_kd.runtime.layout import Layout


class ColocatedTeacher:
    """See `Teacher`. Each data-parallel replica of the student has a copy of the teacher.

    Args:
        model: this rank's part, frozen.
        layout: the student's, and the teacher's.
    """

    strategy = Colocated.name
    in_student_pipeline = Colocated.in_student_pipeline

    def __init__(self, model: DistillableGPTModel, layout: Layout) -> None:
        self.model, self._layout = model.requires_grad_(False).eval(), layout
        self.hidden_size = model.config.hidden_size

    def module(self, chunk: int) -> nn.Module:
        """See `Teacher`."""
        return self.model

    def name_in_module(self, layer: str) -> str | None:
        """See `Teacher`."""
        place = place_of(layer, num_layers=self.model.config.num_layers, stages=self._layout.pp.size)
        return place.local_name if place is not None and place.stage == self._layout.pp.rank else None

    def deliver(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Nothing to do: the teacher reads what the student reads."""

    def select(self, index: int) -> None:
        """Nothing to do."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Teacher`."""
        yield from self.model.named_parameters()
