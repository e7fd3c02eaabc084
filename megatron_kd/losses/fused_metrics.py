"""Metrics of evaluation from a tile of logits: KL at temperature 1, and the student's rank of the teacher's choice.

Both are defined independently of the loss that a run is trained with, so that runs with different losses can be
compared. They take three collectives per tile of their own, which a training step does not pay for.

Shapes: C tokens of a tile, V vocabulary (the logical size, also on a shard).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_kd.losses.kinds import Divergence
from megatron_kd.losses.shard import VocabShard
from megatron_kd.losses.tiles import Tile, combine
from megatron_kd.losses.top_choice import combine_argmax, local_argmax, rank_of


class TileMetrics:
    """Reads tiles of up to `tokens` tokens over the ids of `shared`, in buffers of its own; logits are left alone."""

    def __init__(self, shared: VocabShard, tokens: int, dtype: torch.dtype):
        self._shared, self._tile = shared, Tile(Divergence(), tokens, shared.width, dtype)

    def of(self, student_CV: Tensor, teacher_CV: Tensor) -> tuple[Tensor, Tensor]:
        """KL(teacher || student), and how many ids the student puts before the teacher's first choice; [C] each."""
        shared = self._shared
        stats_3C = self._tile.load(student_CV, teacher_CV)
        stats_R5C = shared.gather(torch.cat((stats_3C, local_argmax(teacher_CV, shared))))
        choice_C = combine_argmax(stats_R5C[:, 3:])
        return combine(stats_R5C[:, :3], self._tile.form).value, rank_of(student_CV, choice_C, shared)
