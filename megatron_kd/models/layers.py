"""The layers of the local spec: norms that support sequence parallelism, and attention by SDPA.

TransformerEngine replaces them on CUDA machines that have it.

Shapes: S sequence, B micro-batch, N heads (of this rank), D channels of a head, H hidden size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_kd.models.packing import segment_lengths


class _Norm(nn.Module):
    """Base of the two norms: a weight whose gradient is summed over sequence shards."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.hidden_size, self.eps = (hidden_size,), eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=_device(config)))
        # Each rank sees its part of the sequence only: megatron-core sums the gradients of marked weights over the
        # tensor-parallel group.
        self.weight.sequence_parallel = config.sequence_parallel


class RMSNorm(_Norm):
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019)."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden` [..., H] to the same shape."""
        return F.rms_norm(hidden, self.hidden_size, self.weight, self.eps)


class LayerNorm(_Norm):
    """Layer norm over the last dimension, with bias (Ba et al. 2016)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps)
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype, device=_device(config)))
        self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise `hidden` [..., H] to the same shape."""
        return F.layer_norm(hidden, self.hidden_size, self.weight, self.bias, self.eps)


class Norm:
    """The norm that `config.normalization` names. It is a class because megatron-core's specs take no functions."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> nn.Module:
        norm = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
        return norm(config, hidden_size, eps)


class SDPAttention(nn.Module):
    """Core attention by `torch.nn.functional.scaled_dot_product_attention`, which keeps no [S, S] scores.

    It is causal. A mask, applied in addition, is boolean, broadcastable to [B, N, S, S], and true where a query must
    not attend. In a packed row the samples are attended to one after the other, each by itself: that needs no mask, and
    computes no score across samples.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.causal = attn_mask_type == AttnMaskType.causal
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query_SBND: Tensor,
        key_SBND: Tensor,
        value_SBND: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> Tensor:
        """Attention of the queries to keys and values.

        Args:
            query_SBND: [S, B, N, D].
            key_SBND: [S, B, N or query groups, D].
            value_SBND: the shape of the keys.
            attention_mask: see the class; None is causal attention.
            attn_mask_type: overrides the layer's own type, where megatron-core passes one.
            packed_seq_params: the samples of packed rows (`packed_segments`), each with causal attention to itself;
                None if a row is one sample.

        Returns:
            [S, B, N * D].
        """
        causal = self.causal if attn_mask_type is None else attn_mask_type == AttnMaskType.causal
        dropout = self.dropout if self.training else 0.0
        if packed_seq_params is not None:
            return attend_in_segments(query_SBND, key_SBND, value_SBND, packed_seq_params, self.scale, dropout)
        S, B, N, D = query_SBND.shape
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBND, value_SBND))
        allowed = None
        if attention_mask is not None:
            allowed = ~attention_mask  # SDPA's convention: true where a query may attend
            if causal:  # SDPA takes a mask or is_causal, not both
                allowed = allowed & torch.ones(S, key.shape[2], dtype=torch.bool, device=allowed.device).tril()
                causal = False
        attend = _attend_with_tracked_dropout if dropout else F.scaled_dot_product_attention
        out = attend(
            query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=causal, scale=self.scale,
            enable_gqa=key.shape[1] != N,
        )  # fmt: skip
        return out.permute(2, 0, 1, 3).reshape(S, B, N * D)


def attend_in_segments(
    query_SBND: Tensor,
    key_SBND: Tensor,
    value_SBND: Tensor,
    segments: PackedSeqParams,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention within each sample of packed rows.

    Args:
        query_SBND: [S, B, N, D].
        key_SBND: [S, B, N or query groups, D].
        value_SBND: the shape of the keys.
        segments: the samples, see `packed_segments`.
        scale: factor of the scores.
        dropout: probability of dropping an attention weight.

    Returns:
        [S, B, N * D].
    """
    attend = _attend_with_tracked_dropout if dropout else F.scaled_dot_product_attention
    S, B, N, D = query_SBND.shape
    grouped = key_SBND.shape[2] != N
    rows = []
    for row, lengths in enumerate(segment_lengths(segments, B)):
        # [N, length, D] of each sample
        heads = (x[:, row].transpose(0, 1).split(lengths, dim=1) for x in (query_SBND, key_SBND, value_SBND))
        parts = [
            attend(q[None], k[None], v[None], dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped)[0]
            for q, k, v in zip(*heads, strict=True)
        ]
        rows.append(torch.cat(parts, dim=1))
    return torch.stack(rows).permute(2, 0, 1, 3).reshape(S, B, N * D)


def packable(attention: type[nn.Module]) -> type[nn.Module]:
    """A subclass of another library's core attention that uses `attend_in_segments` for packed rows."""

    class Packable(attention):
        def forward(
            self,
            query_SBND: Tensor,
            key_SBND: Tensor,
            value_SBND: Tensor,
            *args: Any,
            packed_seq_params: PackedSeqParams | None = None,
            **kwargs: Any,
        ) -> Tensor:
            if packed_seq_params is None:
                return super().forward(query_SBND, key_SBND, value_SBND, *args, **kwargs)
            scale = self.config.softmax_scale or 1.0 / math.sqrt(self.config.kv_channels)
            dropout = self.config.attention_dropout if self.training else 0.0
            return attend_in_segments(query_SBND, key_SBND, value_SBND, packed_seq_params, scale, dropout)

    return Packable


def _attend_with_tracked_dropout(*args: Any, **kwargs: Any) -> Tensor:
    """SDPA with dropout masks of this rank's own: heads are sharded over tensor-parallel ranks."""
    with get_cuda_rng_tracker().fork():
        return F.scaled_dot_product_attention(*args, **kwargs)


def _device(config: TransformerConfig) -> torch.device | int | None:
    """The device that megatron-core's own layers create their weights on; None is torch's default."""
    return None if config.use_cpu_initialization else torch.cuda.current_device()
