"""Matrix products of an output head with a chunk of tokens, and the accumulation of its gradients.

On a GPU the products run in the head's own dtype, as the model's output layer would run them. CPUs without bfloat16
units need 3 to 100 times longer for a bfloat16 product than for a float32 one (measured; the worst is the product that
gives the hidden states' gradient), so there a low-precision head is read in blocks of rows that are cast to float32 on
the way: a float32 copy of the whole head would cost more memory than the logits that the fused loss avoids.

Shapes: C tokens of a chunk, N tokens, V vocabulary (the logical size, also on a shard), H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.losses.shard import compute_dtype
from megatron_kd.losses.sizes import block_rows


class HeadProducts:
    """The products of an output head's true rows on this rank: logits = hidden @ weight^T + bias.

    Args:
        weight: [slots, H].
        bias: [slots] or None.
        width: number of rows that are true ids; the others are padding and are not read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, width: int):
        self.weight_VH = weight.detach()[:width]
        self.bias_V = None if bias is None else bias.detach()[:width]
        self.width = width
        self.dtype = arithmetic_dtype(weight)

    def logits_(self, hidden_CH: Tensor, out_CV: Tensor) -> Tensor:
        """Write the logits of `hidden_CH`, which has `self.dtype`, to `out_CV`; return it."""
        for rows, block_vH in self._blocks():
            torch.mm(hidden_CH, block_vH.T, out=out_CV[:, rows])
        return out_CV if self.bias_V is None else out_CV.add_(self.bias_V)

    def hidden_gradient_(self, grad_CV: Tensor, out_CH: Tensor) -> None:
        """Write the gradient of the hidden states, grad @ weight, to `out_CH`."""
        if self.width == 0:
            out_CH.zero_()
        for first, (rows, block_vH) in enumerate(self._blocks()):
            out_CH.addmm_(grad_CV[:, rows], block_vH, beta=0 if first == 0 else 1)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weight in `self.dtype`: all at once where that is its own, else through one block in turn."""
        if self.weight_VH.dtype == self.dtype:
            if self.width:
                yield slice(0, self.width), self.weight_VH
            return
        size = block_rows(self.weight_VH.shape[1])
        block_vH = self.weight_VH.new_empty(min(size, self.width), self.weight_VH.shape[1], dtype=self.dtype)
        for start in range(0, self.width, size):
            rows = slice(start, min(start + size, self.width))
            yield rows, block_vH[: rows.stop - start].copy_(self.weight_VH[rows])


def arithmetic_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of the matrix products, and so of the logits: the tensor's own on a GPU, at least float32 on a CPU."""
    return compute_dtype(tensor) if tensor.device.type == "cpu" else tensor.dtype


class HeadGradients:
    """Gradients of hidden states, head weight and bias, accumulated over chunks; None where not needed.

    Args:
        hidden_NH: all tokens' hidden states.
        weight, bias: the head's parameters, [slots, H] and [slots].
        needs: whether hidden states, weight and bias need a gradient.
        buffer: where to accumulate the weight's gradient, float32 (float64) [slots, H]; None to allocate it.
    """

    def __init__(
        self,
        hidden_NH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
        buffer: Tensor | None,
    ):
        dtype = compute_dtype(weight)
        self.hidden = torch.empty_like(hidden_NH) if needs[0] else None
        self.weight = None
        if needs[1]:
            self.weight = weight.new_empty(weight.shape, dtype=dtype) if buffer is None else buffer
        self.bias = weight.new_zeros(len(weight), dtype=dtype) if needs[2] else None
        self._fresh = True

    def add_(self, head: HeadProducts, grad_CV: Tensor, hidden_CH: Tensor, rows: slice) -> None:
        """Add a chunk's part. `grad_CV` is the logits' gradient, `hidden_CH` the chunk's states in `head.dtype`."""
        if self.hidden is not None:
            if self.hidden.dtype == head.dtype:
                head.hidden_gradient_(grad_CV, self.hidden[rows])
            else:
                out_CH = torch.empty_like(hidden_CH)
                head.hidden_gradient_(grad_CV, out_CH)
                self.hidden[rows] = out_CH
        if self.bias is not None:
            self.bias[: head.width] += grad_CV.sum(0, dtype=self.bias.dtype)
        if self.weight is not None:
            self._add_weight(head, grad_CV, hidden_CH)
        self._fresh = False

    def _add_weight(self, head: HeadProducts, grad_CV: Tensor, hidden_CH: Tensor) -> None:
        assert self.weight is not None
        weight_VH = self.weight[: head.width]
        if self._fresh:
            self.weight[head.width :] = 0
        if weight_VH.dtype == grad_CV.dtype:
            weight_VH.addmm_(grad_CV.T, hidden_CH, beta=0 if self._fresh else 1)
        elif self._fresh:
            weight_VH.copy_(grad_CV.T @ hidden_CH)
        else:  # a GPU's bfloat16: float32 inside the product, rounded once per chunk, summed in float32
            weight_VH.add_(grad_CV.T @ hidden_CH)


def gather_sequence(hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' parts of the sequence, [S/tp, ..., H] to [S, ..., H]; one collective."""
    out = hidden.new_empty((hidden.shape[0] * dist.get_world_size(group), *hidden.shape[1:]))
    dist.all_gather_into_tensor(out, hidden.contiguous(), group=group)
    return out


def scatter_sequence(gradient: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks of this rank's part of the sequence, [S, ..., H] to [S/tp, ..., H]; one collective."""
    out = gradient.new_empty((gradient.shape[0] // dist.get_world_size(group), *gradient.shape[1:]))
    dist.reduce_scatter_tensor(out, gradient, group=group)
    return out
