"""The distillation's criteria, in the form ModelOpt calls them: modules of (student output, teacher output).

Each returns one loss a token, [S, B]. Under sequence parallelism the output of a norm, and so its loss, covers
this rank's part of the sequence only. S sequence, B micro-batch, V vocabulary, H student and G teacher hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.loss import _Loss  # the type ModelOpt asks of a criterion

from megatron_kd.losses.agreement import vocab_parallel_argmax
from megatron_kd.losses.divergence import vocab_parallel_divergence
from megatron_kd.losses.hidden import cosine_loss


class LogitsDivergence(_Loss):
    """KL(teacher || student) of the two output layers at a temperature. ModelOpt wants "Logits" in the name."""

    def __init__(self, *, temperature: float, group: ProcessGroup, vocab_size: int) -> None:
        super().__init__()
        self.temperature, self.group, self.vocab_size = temperature, group, vocab_size
        self.agreement: Tensor | None = None

    def forward(self, student: tuple[Tensor, Tensor | None], teacher: tuple[Tensor, Tensor | None]) -> Tensor:
        """Both are outputs of a ColumnParallelLinear: ([S, B, V] sharded over V, bias)."""
        student_SBV, teacher_SBV = student[0], teacher[0]
        if not torch.is_grad_enabled():
            self.agreement = self._agreement(student_SBV, teacher_SBV)
        return vocab_parallel_divergence(
            student_SBV, teacher_SBV, temperature=self.temperature, group=self.group, vocab_size=self.vocab_size
        )

    def _agreement(self, student_SBV: Tensor, teacher_SBV: Tensor) -> Tensor:
        ids = [
            vocab_parallel_argmax(logits, group=self.group, vocab_size=self.vocab_size)
            for logits in (student_SBV, teacher_SBV)
        ]
        return (ids[0] == ids[1]).float()


class HiddenCosine(_Loss):
    """1 - cosine similarity of two layers' outputs; a student of another width is projected to the teacher's."""

    def __init__(self, projection: nn.Linear | None) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, student_SBH: Tensor, teacher_SBG: Tensor) -> Tensor:
        """Cosine loss per token, [S, B]."""
        if self.projection is not None:
            student_SBH = self.projection(student_SBH)
        return cosine_loss(student_SBH, teacher_SBG)
