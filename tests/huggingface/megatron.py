"""Logits of a megatron-core model at any layout, on the ranks of a test."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout
from tests.huggingface.families import VOCAB, tokens


@torch.no_grad()
def whole_logits(model: DistillableGPTModel, layout: Layout) -> Tensor | None:
    """[B, S, V] logits on the last stage, gathered over tensor parallelism, without padding; None elsewhere."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    ids, seen = tokens(), []
    positions = torch.arange(ids.shape[1]).expand_as(ids)

    def forward(_: Any, model: DistillableGPTModel) -> tuple[Tensor, Any]:
        output = model(ids, positions, None)
        seen.append(output)
        return output, lambda out: (out.sum(), torch.tensor(1), {})

    get_forward_backward_func(layout.pp.size)(
        forward_step_func=forward, data_iterator=iter([0]), model=[model.eval()], num_microbatches=1,
        seq_length=ids.shape[1], micro_batch_size=len(ids), forward_only=True,
    )  # fmt: skip
    if not layout.is_last_stage:
        return None
    shards = [torch.empty_like(seen[0]) for _ in range(layout.tp.size)]
    dist.all_gather(shards, seen[0].contiguous(), group=layout.tp.group)
    return torch.cat(shards, dim=-1)[..., :VOCAB].clone()
