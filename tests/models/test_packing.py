"""Attention in packed rows: each sample as if it were alone, at any number of rows and heads, with its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn

from megatron_kd.models.layers import SDPAttention, packable
from megatron_kd.models.packing import packed_segments, segment_lengths

ROWS = [[3, 1, 4], [8], [1] * 8]


class _Config:
    attention_dropout, kv_channels, softmax_scale = 0.0, 6, None


def _positions() -> Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in ROWS])


def _attention() -> SDPAttention:
    return SDPAttention(_Config(), 1, AttnMaskType.causal, "self")  # type: ignore[arg-type]


def _inputs(groups: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(8, len(ROWS), heads, 6, requires_grad=True) for heads in (4, groups, groups)]


def test_segments_are_where_positions_begin_again() -> None:
    segments = packed_segments(_positions())
    assert segment_lengths(segments, len(ROWS)) == ROWS
    assert segments.cu_seqlens_q.tolist()[-1] == 8 * len(ROWS)
    assert (segments.qkv_format, segments.max_seqlen_q) == ("sbhd", 8)


@pytest.mark.parametrize("groups", [4, 2])
def test_packed_attention_is_that_of_the_block_diagonal_mask(groups: int) -> None:
    sample = torch.stack([torch.tensor([i for i, n in enumerate(row) for _ in range(n)]) for row in ROWS])
    apart = sample[:, None, :, None] != sample[:, None, None, :]  # [B, 1, S, S], true where attention is masked
    results = []
    for extra in ({"attention_mask": apart}, {"packed_seq_params": packed_segments(_positions())}):
        inputs = _inputs(groups)
        output = _attention()(*inputs, **extra)
        output.square().sum().backward()
        results.append([output.detach(), *(value.grad for value in inputs)])
    for masked, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, masked, atol=1e-5, rtol=1e-5)


def test_a_sample_does_not_see_what_shares_its_row() -> None:
    query, key, value = (x.detach() for x in _inputs(2))
    segments = packed_segments(_positions())
    before = _attention()(query, key, value, packed_seq_params=segments)
    key[:3, 0], value[:3, 0] = 7.0, -7.0  # the first sample of the first row
    after = _attention()(query, key, value, packed_seq_params=segments)
    assert not torch.equal(before[:3, 0], after[:3, 0])
    assert torch.equal(before[3:, 0], after[3:, 0]) and torch.equal(before[:, 1:], after[:, 1:])


class _Foreign(nn.Module):
    """Stands for a core attention of another library, called as megatron-core calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = _Config()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Tensor:
        return query.flatten(2) * 0 + 42


def test_another_librarys_attention_leaves_packed_rows_to_ours() -> None:
    attention, inputs, segments = packable(_Foreign)(), _inputs(2), packed_segments(_positions())
    ours = _attention()(*inputs, packed_seq_params=segments)
    assert (attention(*inputs, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=None) == 42).all()
    packed = attention(*inputs, None, attn_mask_type=AttnMaskType.causal, packed_seq_params=segments)
    assert torch.equal(packed, ours)
