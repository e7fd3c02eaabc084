"""Bytes of activations on one rank: what a layer keeps for its backward, and what a forward or backward needs beside.

They follow megatron-core's layer as it runs here without TransformerEngine (`models/spec.py`), tensor by tensor, and
were checked by counting the storages of real steps (`tools/bench/plan_accuracy.py`). The terms are those of Korthikanti
et al. 2022 (arXiv:2205.05198), without the scores, which SDPA does not keep, and with what that paper's fused kernels
spare: the inner states of a gated activation, and on CPUs the float32 copies of RMSNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.gpt_model import WEIGHT_ONLY, GPTModelProvider
from megatron_kd.placement.parameters import LayerSizes, layer_sizes
from megatron_kd.placement.workload import Workload


@dataclass(frozen=True)
class Work:
    """One micro-batch on one rank.

    Attributes:
        sequences: B.
        seq_length: S.
        tp: tensor-parallel size.
        sequence_parallel: whether hidden states between layers are divided over those ranks.
        itemsize: bytes of an activation.
        device: "cuda" or "cpu".
    """

    sequences: int
    seq_length: int
    tp: int
    sequence_parallel: bool
    itemsize: int
    device: str

    @classmethod
    def of(cls, run: Workload, model: GPTModelProvider, *, sequences: int, tp: int, itemsize: int) -> Work:
        """A micro-batch of one of the models of `run`; both read the student's tokens."""
        return cls(sequences, run.model.seq_length, tp, model.sequence_parallel and tp > 1, itemsize, run.device)

    @property
    def tokens(self) -> int:
        """S B."""
        return self.sequences * self.seq_length

    @property
    def held_tokens(self) -> int:
        """Tokens whose hidden states between layers are on this rank."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens

    def hidden(self, width: int) -> int:
        """Bytes of hidden states [S, B, width] between layers, on this rank."""
        return self.held_tokens * width * self.itemsize

    def whole(self, width: int) -> int:
        """Bytes of [S, B, width]."""
        return self.tokens * width * self.itemsize


def student_work(run: Workload) -> Work:
    """One micro-batch of the student on a rank."""
    return Work.of(run, run.model, sequences=run.micro_batch_size, tp=run.student.tp, itemsize=run.itemsize)


def layer_kept(model: GPTModelProvider, work: Work) -> int:
    """Bytes that one layer saves from its forward for its backward, including its output but not its input."""
    sizes = layer_sizes(model, work.tp)
    residual = 2 * work.hidden(sizes.hidden)  # after attention, and the output
    norms = 2 * (norm_kept(model, work, work.held_tokens * sizes.hidden) + work.hidden(sizes.hidden))
    parts = _attention_kept(model, work, sizes), _mlp_kept(model, work, sizes), _dropout(model, work)
    return residual + norms + sum(parts) + _rounded(model, work, sizes)


def norm_kept(model: GPTModelProvider, work: Work, elements: int) -> int:
    """Bytes that a norm saves beyond its input and output: on CPUs RMSNorm is several operations in float32."""
    if model.normalization == "LayerNorm" or work.device == "cuda":
        return 0
    return elements * (8 if work.itemsize < 4 else 4)


def forward_working(model: GPTModelProvider, work: Work) -> int:
    """The most that a layer's forward without gradients holds at a time, its input included."""
    sizes = layer_sizes(model, work.tp)
    around = 2 * work.hidden(sizes.hidden)  # the residual and the norm's output
    gathered = work.whole(sizes.hidden) if work.sequence_parallel else 0
    attention = work.whole(sizes.qkv + 3 * sizes.queries + 2 * sizes.keys)
    mlp = work.whole(sizes.fc1 + (3 if model.gated_linear_unit else 1) * sizes.ffn)
    norm = 2 * norm_kept(model, work, work.held_tokens * sizes.hidden)
    return around + gathered + max(attention, mlp, norm)


def backward_extra(model: GPTModelProvider, work: Work) -> int:
    """The most that the backward of a layer holds beyond what layers have kept, as it frees them.

    The gradient of the hidden states is there throughout. Matrix gradients are made in the weights' precision before
    they are added to the gradient buffer.
    """
    sizes = layer_sizes(model, work.tp)
    passing = 2 * work.hidden(sizes.hidden)
    gathered = 2 * work.whole(sizes.hidden) if work.sequence_parallel else 0
    fc2 = work.whole(sizes.ffn) + sizes.hidden * sizes.ffn * work.itemsize
    freed = _mlp_kept(model, work, sizes)
    fc1 = work.whole(sizes.fc1) + sizes.hidden * sizes.fc1 * work.itemsize - freed
    return passing + gathered + max(fc2, fc1)


def _attention_kept(model: GPTModelProvider, work: Work, sizes: LayerSizes) -> int:
    """QKV (the values are a view of it), rotated or copied queries and keys, output, log-sum-exps, rotary tables."""
    kept = work.whole(sizes.qkv) + work.whole(sizes.queries)
    kept += 4 * work.tokens * (sizes.queries // sizes.head)
    grouped = model.query_groups < model.num_attention_heads
    if model.qk_layernorm:
        # The inputs of both norms: the keys are a view of QKV, the queries too unless they are regrouped.
        kept += work.whole(sizes.queries if grouped else 0)
        kept += norm_kept(model, work, work.tokens * (sizes.queries + sizes.keys))
    if model.position_embedding_type == "rope":
        kept += work.whole(sizes.queries + sizes.keys)
        kept += 4 * work.seq_length * int(sizes.head * model.rotary_percent) * work.itemsize
    elif model.qk_layernorm:
        kept += work.whole(sizes.queries + sizes.keys)
    elif grouped:
        kept += work.whole(sizes.queries)
    return kept


def _mlp_kept(model: GPTModelProvider, work: Work, sizes: LayerSizes) -> int:
    """Input and output of the activation; gated: act(x0), x1 + offset and their product beside x0 and x1."""
    return work.whole(sizes.fc1 + (3 if model.gated_linear_unit else 1) * sizes.ffn)


def _rounded(model: GPTModelProvider, work: Work, sizes: LayerSizes) -> int:
    """With fake quantisation: the layer's matrices, and the attention's output where it keeps that as it was.

    Other inputs are kept rounded instead of as they were.
    """
    if model.quantization is None:
        return 0
    rows = sizes.qkv + sizes.queries + sizes.fc1 + sizes.ffn  # of matrices as wide, or as high, as hidden states
    kept = rows * sizes.hidden * work.itemsize
    if model.quantization not in WEIGHT_ONLY:
        kept += work.whole(sizes.queries)
    return kept


def _dropout(model: GPTModelProvider, work: Work) -> int:
    """Masks: of a byte an element on GPUs, and of the activation's own type on CPUs."""
    mask = 1 if work.device == "cuda" else work.itemsize
    kept = 2 * work.held_tokens * model.hidden_size * mask if model.hidden_dropout else 0
    if model.attention_dropout and work.device == "cpu":  # SDPA then keeps the scores, before and after the mask
        heads = layer_sizes(model, work.tp).queries // layer_sizes(model, 1).head
        kept += 3 * work.sequences * heads * work.seq_length**2 * work.itemsize
    return kept
