"""The seam between a teacher and the losses: micro-batches go in, their targets come out.

Nothing above this knows whether a target was computed beside the student, on another rank, or long ago.

Shapes: S sequence (this rank's part of it under sequence parallelism), B micro-batch, G teacher hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from megatron_kd.models.micro_batch import MicroBatch


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Targets:
    """A teacher's outputs for one micro-batch.

    Distributions over the vocabulary, from a teacher that gives no hidden states, would be one more field.

    Attributes:
        sample_ids: the micro-batch's.
        hidden: the output of each teacher layer that a loss on this rank reads, [S, B, G], by the layer's name in the
            whole teacher. A teacher in the student's pipeline adds them as its layers run, just before the student's.
    """

    sample_ids: tuple[int, ...]
    hidden: dict[str, Tensor] = field(default_factory=dict)


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

    def deliver(self, micro_batches: Sequence[MicroBatch]) -> list[Targets]:
        """The targets of a step's or an evaluation's micro-batches; called on every rank, before their forwards."""

    def module(self, chunk: int) -> nn.Module | None:
        """The teacher module paired with a chunk of the student; None for a chunk that no loss reads from."""

    def name_in_module(self, layer: str) -> str | None:
        """The name within `module` of a layer of the whole teacher; None if it is on another pipeline stage."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The teacher's weights that this rank holds."""
