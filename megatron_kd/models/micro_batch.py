"""One micro-batch as a value: what a forward reads, and what its losses and its errors need to know of it.

B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class MicroBatch:
    """B rows of S tokens.

    Attributes:
        tokens: [B, S] int64.
        labels: [B, S] int64, the token that follows each.
        position_ids: [B, S] int64; they count from 0 in each sample of a packed row.
        loss_mask: [B, S] float32; 0 where a token takes no part in any loss.
        sample_ids: the B rows' places in the order in which a run reads its data; by them a teacher's cache and an
            error name a row.
        segments: where the samples of packed rows begin, in host memory; None where a row is one sample.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    loss_mask: Tensor
    sample_ids: tuple[int, ...]
    segments: PackedSeqParams | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on `device`, which is not waited for."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> MicroBatch:
        """The same micro-batch in page-locked memory; a DataLoader calls this."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, changed: Callable[[Tensor], Tensor]) -> MicroBatch:
        return replace(
            self,
            tokens=changed(self.tokens),
            labels=changed(self.labels),
            position_ids=changed(self.position_ids),
            loss_mask=changed(self.loss_mask),
        )
