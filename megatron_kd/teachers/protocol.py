"""What the rest of the package knows of a teacher, wherever it lives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn

from megatron_kd.models.micro_batch import MicroBatch


class Teacher(Protocol):
    """A frozen teacher.

    Attributes:
        strategy: where it lives, `model.teacher_device_strategy` as resolved.
        hidden_size: of its final hidden states.
        in_student_pipeline: whether its stages run with the student's, and its hidden states travel with theirs.
    """

    strategy: str
    hidden_size: int
    in_student_pipeline: bool

    def module(self, chunk: int) -> nn.Module | None:
        """What a chunk of the student is paired with; None for a chunk that no loss reads from."""

    def name_in_module(self, layer: str) -> str | None:
        """What `module` calls a layer of the whole teacher; None if it is on another pipeline stage."""

    def deliver(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Called on every rank with its micro-batches, before a step's or an evaluation's forwards."""

    def select(self, index: int) -> None:
        """Called on every rank before the forward of a micro-batch of those."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The teacher's weights that this rank holds."""
