"""The losses work in the form and in the pieces that a plan counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.kd_config import why_materialised
from megatron_kd.losses import sizes
from megatron_kd.losses.keywords import fused_linear_divergence
from megatron_kd.planning.loss_memory import logits_loss
from tests.planning.workloads import workload_of
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tools.bench.allocations import AllocationCounter

TOKENS, WIDE = 512, 24_960  # ids: a chunk is some of the tokens, and a tile some of a chunk
FORMS: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, False),
    "static balance": ({"loss_balancer": "static"}, False),
    "asked for": ({"logits_form": "materialised"}, True),
    "top k": ({"logit_kl_topk": 4}, True),
    "ModelOpt's balance": ({"loss_balancer": "modelopt"}, True),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shrink", [1, 4])
def test_the_fused_loss_works_in_the_pieces_that_a_plan_counts(
    shrink: int, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sizes, "_CPU_CHUNK", (sizes._CPU_CHUNK[0] // shrink, 256))
    monkeypatch.setattr(sizes, "_CPU_TILE", sizes._CPU_TILE // shrink)
    model = {"seq_length": TOKENS, "vocab_size": WIDE}
    cfg = tiny_config(tmp_path, precision=precision, micro_batch_size=1, student=model, teacher=model)
    planned = logits_loss(workload_of(cfg, 1, device="cpu")).forward
    assert planned == pytest.approx(
        fused_peak(cfg.model.hidden_size, cfg.model.teacher.hidden_size, precision), rel=0.01
    )


def fused_peak(student: int, teacher: int, precision: str) -> int:
    """Bytes that the forward of one micro-batch's loss holds at most, beside its inputs."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    hidden = [
        torch.randn(TOKENS, 1, width, dtype=dtype, requires_grad=width == student) for width in (student, teacher)
    ]
    heads = [torch.nn.Parameter(torch.randn(WIDE, width, dtype=dtype)) for width in (student, teacher)]
    with AllocationCounter() as counter:
        fused_linear_divergence(hidden[0], heads[0], hidden[1], heads[1])
    return counter.peak_bytes


def output_layer_calls(configs: list[ConfigContainer]) -> list[int]:
    """On a rank, for each configuration: how often a training step computes the student's logits."""
    from megatron_kd.config.derived import derived
    from megatron_kd.runtime.start import running_ranks
    from megatron_kd.training.run_state import build_run
    from megatron_kd.training.step import train_step
    from tools.bench.plan_accuracy import made_up

    found = []
    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        for cfg in configs:
            run, calls = build_run(cfg, derived(cfg, 1), layout), []
            run.students[0].output_layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            train_step(run, made_up(cfg))
            found.append(len(calls))
    return found


@pytest.mark.slow
def test_logits_exist_where_a_plan_counts_them(tmp_path: Path) -> None:
    configs = [tiny_config(tmp_path, kd=kd, micro_batch_size=4) for kd, _ in FORMS.values()]
    for cfg, calls, (name, (_, kept)) in zip(
        configs, run_ranks(1, output_layer_calls, configs)[0], FORMS.items(), strict=True
    ):
        counted = logits_loss(workload_of(cfg, 1, device="cpu"))
        assert bool(calls) == kept == (why_materialised(cfg.model.kd_config) is not None), name
        assert (counted.lasting == 0) == kept, name  # the head's gradient has a buffer of its own without logits
