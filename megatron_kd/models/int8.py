"""Weights kept as int8 with a float32 scale a row: about half the bytes of bfloat16, a quarter of float32's.

The arithmetic is the model's own: a weight is dequantised before its product and dropped after it.
O output rows, I input columns (on this rank: tensor parallelism splits the one or the other).
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
_BLOCK_BYTES = 8 << 20

# By name, since TransformerEngine's classes differ from megatron-core's own.
_WHOLE_ROWS = ("self_attention.linear_qkv", "mlp.linear_fc1")
_SPLIT_ROWS = ("self_attention.linear_proj", "mlp.linear_fc2")


def row_scales(weight_OI: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """What 1 in int8 stands for, by row: the largest magnitude over 127.

    Args:
        weight_OI: [O, I].
        group: the ranks that hold the rows' other columns; they must call this together.

    Returns:
        [O, 1] in float32, equal on all ranks of `group`: a teacher is the same at every layout.
    """
    smallest, largest = torch.aminmax(weight_OI, dim=1, keepdim=True)
    magnitude = torch.maximum(largest, -smallest).float()
    if group is not None and group.size() > 1:
        dist.all_reduce(magnitude, op=dist.ReduceOp.MAX, group=group)
    return (magnitude / _LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)  # of a row of zeros


def quantise_(values_OI: Tensor, weight_OI: Tensor, scales_O1: Tensor) -> None:
    """Write `weight_OI` to `values_OI`, int8, by scales that `row_scales` gave."""
    size = max(1, _BLOCK_BYTES // (4 * weight_OI.shape[1]))
    for start in range(0, len(weight_OI), size):  # in blocks: the quotient is in float32, also of a bfloat16 weight
        rows = slice(start, start + size)
        values_OI[rows] = (weight_OI[rows] / scales_O1[rows]).round_()


def dequantised(values_OI: Tensor, scales_O1: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I] in `dtype`, each product rounded once."""
    return values_OI.to(dtype).mul_(scales_O1)


class Int8Linear(nn.Module):
    """Stands in the place of a frozen parallel linear layer, and keeps its weight as int8.

    Args:
        linear: megatron-core's or TransformerEngine's layer; it stays as it is, but for its weight, which is None
            between calls.
        group: the ranks that hold the rows' other columns, where the input is what is split.
    """

    def __init__(self, linear: nn.Module, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        weight = linear.weight
        self.linear, self._group, self._dtype = linear, group, weight.dtype
        self.values = nn.Parameter(torch.empty_like(weight, dtype=torch.int8), requires_grad=False)
        self.scales = nn.Parameter(weight.new_empty(len(weight), 1, dtype=torch.float32), requires_grad=False)
        linear.weight = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called with what the linear layer is called with."""
        weight = dequantised(self.values, self.scales, self._dtype)
        return functional_call(self.linear, {"weight": weight}, args, kwargs)

    @contextmanager
    def weight_to_fill(self) -> Iterator[Tensor]:
        """Room for the weight in full precision, [O, I], part of the model's state within the block.

        What was written to it is quantised at the end, by all ranks of the group together.
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
        """The linear layer's, under its own names; with a weight only while there is one to fill."""
        return self.linear.sharded_state_dict(prefix, sharded_offsets, metadata)


def quantise_linears(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Put an `Int8Linear` in the place of each linear layer of a GPT model's transformer layers.

    Their weights are lost: `weight_to_fill` takes them.

    Args:
        model: this rank's part of a frozen model.
        group: its tensor-parallel ranks.
    """
    for layer in model.decoder.layers:
        for name in _WHOLE_ROWS + _SPLIT_ROWS:
            linear = Int8Linear(layer.get_submodule(name), group if name in _SPLIT_ROWS else None)
            layer.set_submodule(name, linear)


def int8_linears(module: nn.Module) -> list[Int8Linear]:
    """Those in `module`."""
    return [part for part in module.modules() if isinstance(part, Int8Linear)]
