"""Weights stored as int8 with one float32 scale per row: about half the bytes of bfloat16, a quarter of float32's.

Only storage is int8: a weight is dequantised for its product, in the model's own dtype, and freed after it.

Shapes: O output rows, I input columns (on this rank: tensor parallelism splits one of them).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from torch import Tensor, nn
from torch.func import functional_call

_LARGEST = 127  # symmetric: -128 is not used
_BLOCK_BYTES = 8 << 20  # of a float32 quotient: bounds the memory of quantising beside a whole weight

# By name, since TransformerEngine's classes differ from megatron-core's own.
_WHOLE_ROWS = ("self_attention.linear_qkv", "mlp.linear_fc1")
_SPLIT_ROWS = ("self_attention.linear_proj", "mlp.linear_fc2")


def row_scales(weight_OI: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The scale of each row, the value of 1 in int8: the row's largest magnitude divided by 127.

    Args:
        weight_OI: [O, I].
        group: the ranks that hold the rows' other columns; they must call this together.

    Returns:
        [O, 1] in float32, equal on all ranks of `group`, so that a teacher is the same at every layout.
    """
    smallest, largest = torch.aminmax(weight_OI, dim=1, keepdim=True)
    magnitude = torch.maximum(largest, -smallest).float()
    if group is not None and group.size() > 1:
        dist.all_reduce(magnitude, op=dist.ReduceOp.MAX, group=group)
    return (magnitude / _LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)  # a row of zeros: 0 / 0


def quantise_(values_OI: Tensor, weight_OI: Tensor, scales_O1: Tensor) -> None:
    """Quantise `weight_OI` [O, I] into `values_OI` [O, I], int8, with the scales [O, 1] of `row_scales`."""
    size = max(1, _BLOCK_BYTES // (4 * weight_OI.shape[1]))
    for start in range(0, len(weight_OI), size):  # the quotient is float32, for a bfloat16 weight too
        rows = slice(start, start + size)
        values_OI[rows] = (weight_OI[rows] / scales_O1[rows]).round_()


def dequantised(values_OI: Tensor, scales_O1: Tensor, dtype: torch.dtype) -> Tensor:
    """values_OI * scales_O1, [O, I] in `dtype`; each product is rounded once."""
    return values_OI.to(dtype).mul_(scales_O1)


class Int8Linear(nn.Module):
    """Replaces a frozen parallel linear layer, and stores its weight as int8.

    Args:
        linear: megatron-core's or TransformerEngine's layer. Its weight is None between calls; the rest is unchanged.
        group: the ranks that hold the rows' other columns, where the columns are sharded; else None.
    """

    def __init__(self, linear: nn.Module, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        weight = linear.weight
        self.linear, self._group, self._dtype = linear, group, weight.dtype
        self.values = nn.Parameter(torch.empty_like(weight, dtype=torch.int8), requires_grad=False)
        self.scales = nn.Parameter(weight.new_empty(len(weight), 1, dtype=torch.float32), requires_grad=False)
        linear.weight = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The linear layer's forward, of its own arguments, with the dequantised weight."""
        weight = dequantised(self.values, self.scales, self._dtype)
        return functional_call(self.linear, {"weight": weight}, args, kwargs)

    @contextmanager
    def weight_to_fill(self) -> Iterator[Tensor]:
        """A weight in full precision, [O, I], to be filled; within the block it is part of the model's state.

        It is quantised at the end of the block, by all ranks of the group together.
        """
        weight = torch.empty_like(self.values, dtype=self._dtype)
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        yield weight
        self.linear.weight = None
        with torch.no_grad():
            self.scales.copy_(row_scales(weight, self._group))
            quantise_(self.values, weight, self.scales)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """The linear layer's state under its own names; it has a weight only inside `weight_to_fill`."""
        return self.linear.sharded_state_dict(prefix, sharded_offsets, metadata)


def quantise_linears(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace each linear layer of a GPT model's transformer layers with an `Int8Linear`.

    Their weights are discarded; `weight_to_fill` sets new ones.

    Args:
        model: this rank's part of a frozen model.
        group: its tensor-parallel ranks.
    """
    for layer in model.decoder.layers:
        for name in _WHOLE_ROWS + _SPLIT_ROWS:
            linear = Int8Linear(layer.get_submodule(name), group if name in _SPLIT_ROWS else None)
            layer.set_submodule(name, linear)


def int8_linears(module: nn.Module) -> list[Int8Linear]:
    """All `Int8Linear` layers in `module`."""
    return [part for part in module.modules() if isinstance(part, Int8Linear)]
