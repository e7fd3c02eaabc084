"""Work, traffic and the choice of `auto`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import InputError
from megatron_kd.models.llama import llama31_8b, llama31_70b
from megatron_kd.placement.registry import strategy_named
from megatron_kd.planning.estimate import SPEEDS, Choice, choose, estimate
from megatron_kd.planning.flops import flops_per_token, pipeline_bubble
from megatron_kd.planning.student_memory import trained_parameters
from megatron_kd.planning.traffic import traffic
from tests.planning.workloads import scenario, workload_of
from tests.tiny import tiny_config


def llama(run_dir: Path, **options: Any) -> ConfigContainer:
    """70B to 8B in bf16 with 64 sequences of 4096 tokens, student at TP 2."""
    cfg = tiny_config(run_dir, precision="bf16", micro_batch_size=1)
    layout: dict[str, Any] = {"tensor_model_parallel_size": 2}
    student = vars(llama31_8b(seq_length=4096, **layout, **options))
    cfg.model = replace(cfg.model, **student, teacher=llama31_70b(seq_length=4096))
    cfg.train.global_batch_size = 64
    return cfg


def test_flops_are_two_a_weight_forward_and_six_with_the_backward(tmp_path: Path) -> None:
    flops = flops_per_token(workload_of(llama(tmp_path), 2))
    table = 128256 * 8192  # one of the teacher's two is looked up, not multiplied with
    assert flops.teacher == pytest.approx(2 * (llama31_70b_parameters() - table), rel=1e-4)  # norms are not matmuls
    assert flops.student == pytest.approx(6 * (8_030_261_248 - 128256 * 4096), rel=1e-4)
    assert flops.recompute == 0
    assert flops.attention == 2 * 4096 * (80 * 8192 + 3 * 32 * 4096)


def llama31_70b_parameters() -> int:
    return 70_553_706_496


def test_recompute_adds_a_forward_of_what_is_recomputed(tmp_path: Path) -> None:
    full = {"recompute_granularity": "full", "recompute_num_layers": 8}
    plain = flops_per_token(workload_of(llama(tmp_path), 2))
    uniform = flops_per_token(workload_of(llama(tmp_path, **full, recompute_method="uniform"), 2))
    block = flops_per_token(workload_of(llama(tmp_path, **full, recompute_method="block"), 2))
    assert uniform.recompute == pytest.approx((plain.student - 6 * 128256 * 4096) / 3)
    assert block.recompute == uniform.recompute / 4  # 8 of 32 layers
    assert uniform.attention - plain.attention == 2 * 4096 * 32 * 4096


@pytest.mark.parametrize(("stages", "chunks", "batches", "bubble"), [(1, 1, 8, 0), (4, 1, 4, 3 / 7), (4, 2, 4, 3 / 11)])
def test_bubble(stages: int, chunks: int, batches: int, bubble: float) -> None:
    assert pipeline_bubble(stages, chunks, batches) == bubble


def test_hidden_states_travel_instead_of_logits(tmp_path: Path) -> None:
    moved = traffic(scenario(llama(tmp_path, sequence_parallel=True), 8, "balanced"))
    assert moved.hand_over == 64 * 4096 * 8192 * 2 / 8
    assert moved.as_logits / moved.hand_over == 128256 / 8192
    assert traffic(scenario(llama(tmp_path), 8, "colocated")).hand_over == 0


def test_gradients_are_reduced_and_weights_gathered(tmp_path: Path) -> None:
    planned = scenario(llama(tmp_path), 8, "gpu0")
    assert traffic(planned).data_parallel == 3 / 4 * (4 + 2) * trained_parameters(planned.run, 0)


def chosen(cfg: ConfigContainer, ranks: int, gigabytes: float | None, **options: Any) -> Choice:
    return choose(workload_of(cfg, ranks, **options), None if gigabytes is None else gigabytes * 1e9)


def test_auto_takes_the_fastest_that_fits(tmp_path: Path) -> None:
    same = llama(tmp_path)
    same.model.teacher = replace(same.model.teacher, tensor_model_parallel_size=2)
    assert chosen(same, 16, 300).strategy.name == "colocated"
    different = llama(tmp_path)
    choice = chosen(different, 64, 80)
    assert choice.strategy.name == "balanced"
    assert "gpu0 would not fit" in choice.reason
    assert not {e.strategy.name: e for e in choice.estimates}["gpu0"].fits(80e9)
    assert chosen(different, 2, 250).strategy.name == "balanced"
    assert chosen(different, 2, 150).strategy.name == "cpu"  # half a teacher beside the student is too much


def test_when_nothing_fits_the_one_that_needs_least_is_named(tmp_path: Path) -> None:
    choice = chosen(llama(tmp_path), 2, 10)
    assert choice.strategy.name == "cpu"
    assert "none fits in 90% of 10 GB" in choice.reason


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "cpu"), (2, "balanced"), (4, "balanced")])
def test_without_a_known_memory_the_number_of_devices_decides(ranks: int, strategy: str, tmp_path: Path) -> None:
    choice = chosen(tiny_config(tmp_path, micro_batch_size=1), ranks, None)
    assert choice.strategy.name == strategy
    assert "unknown" in choice.reason


def test_what_a_strategy_cannot_serve_is_said_and_not_chosen(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, pp=2, micro_batch_size=2)
    cfg.model.teacher_rank = 5
    cfg.model.teacher_dtype = "bfloat16"
    assert "model.teacher_rank=5" in str(estimate(workload_of(cfg, 4), strategy_named("gpu0")).cannot[-1])
    assert "one precision" in str(estimate(workload_of(cfg, 4), strategy_named("colocated")).cannot[0])
    assert chosen(cfg, 4, 1000).strategy.name == "balanced"


def test_without_any_strategy_all_reasons_are_told(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path)
    cfg.model.teacher.tensor_model_parallel_size = 3
    with pytest.raises(InputError, match=r"model\.teacher\.tensor_model_parallel_size=3"):
        chosen(cfg, 1, 1000)


def test_a_plan_is_of_a_distillation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no teacher"):
        workload_of(tiny_config(tmp_path, distilled=False), 1)


def test_speeds_are_known_of_both_devices() -> None:
    assert set(SPEEDS) == {"cuda", "cpu"}
