"""Allocations of a step's logit losses: no logits in the fused form, and a buffer of the head's gradient."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.distillation.balance import Losses
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.logits import FusedLogits
from megatron_kd.distillation.report import StepSums
from megatron_kd.losses.faults import Faults
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.teachers.protocol import Targets
from tests.distillation.passes import forward_backward
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tools.bench.allocations import AllocationCounter

V, H, S, B = 24, 8, 6, 2


def forward(teacher_hidden: torch.Tensor) -> Forward:
    labels, mask, ids = torch.zeros(B, S, dtype=torch.long), torch.ones(B, S), (0, 1)
    return Forward(
        micro_batch=MicroBatch(labels, labels, labels, mask, ids),
        targets=Targets(ids, {"decoder.final_layernorm": teacher_hidden}),
        weights=Losses(0.0, 1.0, 0.0),
        sums=StepSums(torch.device("cpu")),
        faults=Faults(),
    )


def head_gradient(order: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, int]:
    """The sum of the micro-batches' head gradients under a schedule, and how many buffers it took."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(V, H))
    weight.main_grad = torch.zeros(V, H)  # type: ignore[attr-defined]
    student: Any = SimpleNamespace(true_vocab_size=V, head_weight=lambda: weight)
    teacher: Any = SimpleNamespace(true_vocab_size=V, head_weight=lambda: torch.ones(V, H))
    layout: Any = SimpleNamespace(tp=SimpleNamespace(group=None))
    fused = FusedLogits(teacher, ModelOptDistillConfig(), layout, sequence_parallel=False)
    totals = []
    for student_hidden, teacher_hidden in batches:
        total = fused(forward(teacher_hidden), student, student_hidden).total
        if order == "one by one":
            total.backward()
        totals.append(total)
    if order == "forwards first":
        for total in totals:
            total.backward()
    return weight.main_grad, len(fused._spare_gradients)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("order", "buffers"), [("one by one", 1), ("forwards first", 3)])
def test_micro_batches_share_a_buffer_only_one_after_the_other(order: str, buffers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(S, B, H, generator=generator), torch.randn(S, B, H, generator=generator)) for _ in range(3)]
    alone = [head_gradient("one by one", [batch])[0] for batch in batches]
    together, used = head_gradient(order, batches)
    torch.testing.assert_close(together, sum(alone))
    assert used == buffers


def largest_tensors_of_a_step(cfgs: list[ConfigContainer]) -> list[int]:
    """On a rank: elements of the largest tensor that forward and backward of the first step make, by configuration."""
    from megatron_kd.config.derived import derived
    from megatron_kd.data.tokens.tokenizer import load_tokenizer
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_data import RunData
    from megatron_kd.training.run_state import build_run

    found = []
    for cfg in cfgs:
        size = cfg.model.tensor_model_parallel_size
        with running_ranks(tensor_model_parallel_size=size, pipeline_model_parallel_size=1, seed=1) as layout:
            values = derived(cfg, layout.world_size)
            run = build_run(cfg, values, layout)
            batches = RunData(cfg, values, layout, load_tokenizer(cfg.tokenizer)).training(0)
            with AllocationCounter() as counter:
                forward_backward(run, list(islice(batches, values.num_microbatches)))
            found.append(counter.largest_numel)
    return found


@pytest.mark.parametrize("tp", [1, 2])
def test_a_step_makes_no_tensor_of_the_size_of_the_logits(tp: int, tmp_path: Path) -> None:
    vocab, sizes = 3000, {"vocab_size": 3000, "seq_length": 64}
    cfgs = [
        tiny_config(tmp_path, tp=tp, student=sizes, teacher=sizes, kd={"skip_lm_loss": False, "logits_form": form})
        for form in ("auto", "materialised")
    ]
    logits = 8 * 64 * vocab / tp  # of the step's 8 sequences, twice the tokens of a chunk
    for fused, materialised in run_ranks(tp, largest_tensors_of_a_step, cfgs):
        assert fused < 0.6 * logits
        assert materialised >= logits
