"""The first tokens of the samples in a packed micro-batch, in the form that megatron-core's models pass to attention.

Shapes: S sequence, B micro-batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


def packed_segments(position_ids_BS: Tensor) -> PackedSeqParams:
    """The samples of packed rows, from position ids that count from 0 in each.

    Args:
        position_ids_BS: [B, S]. On an accelerator, this waits for the device: the number of samples is needed here.

    Returns:
        parameters of the format `sbhd`, which keeps the layout [S, B]: `cu_seqlens_q` (int32, in host memory) holds the
        index of each sample's first token among the B x S of the micro-batch, row by row, and B x S at the end. The
        longest sample is given as S, from which megatron-core takes the length of the rotary embeddings.
    """
    B, S = position_ids_BS.shape
    firsts = (position_ids_BS.cpu().flatten() == 0).nonzero().flatten().int()
    ends = torch.cat((firsts, torch.tensor([B * S], dtype=torch.int32)))
    return PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=S, max_seqlen_kv=S)


def segment_lengths(segments: PackedSeqParams, rows: int) -> list[list[int]]:
    """The lengths of the samples in each of `rows` rows; those of a row add up to S."""
    bounds: list[int] = segments.cu_seqlens_q.tolist()
    S = bounds[-1] // rows
    lengths: list[list[int]] = [[] for _ in range(rows)]
    for first, last in pairwise(bounds):
        lengths[first // S].append(last - first)
    return lengths
