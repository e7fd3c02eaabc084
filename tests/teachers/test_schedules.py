"""Features that need a teacher outside the student's pipeline: chunks, distant layer pairs, other precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_kd.config.container import ConfigContainer
from tests.ranks import run_ranks
from tests.teachers.test_strategies import COMPARED, placed_config
from tests.tiny import tiny_config, train_and_read

pytestmark = pytest.mark.slow  # whole runs on several ranks

LAYERS = {"num_layers": 4}
CHUNKS = {**LAYERS, "virtual_pipeline_model_parallel_size": 2}
PAIRS = {
    "intermediate_layer_pairs": [
        ["decoder.layers.0.input_layernorm", "decoder.layers.3.input_layernorm", "mse"],
        ["decoder.layers.3.pre_mlp_layernorm", "decoder.layers.0.pre_mlp_layernorm"],
        ["decoder.layers.1.input_layernorm", "decoder.layers.3.input_layernorm", "smooth_l1"],
        ["decoder.final_layernorm", "decoder.final_layernorm"],
    ]
}


def gentle(cfg: ConfigContainer) -> ConfigContainer:
    """At a lower learning rate: Adam would make the rounding of many layer losses into differences of its steps."""
    cfg.optimizer.lr = 1e-3
    return cfg


def assert_equal_runs(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(records) == len(expected) == 6
    for record, reference in zip(records, expected, strict=True):
        for name in COMPARED:
            if name in reference:
                assert record[name] == pytest.approx(reference[name], rel=1e-5), (record["step"], name)


@pytest.mark.parametrize(
    "teacher",
    [
        {"strategy": "balanced", "tp": 2},
        {"strategy": "balanced", "pp": 2, "micro_batch_size": 2},
        {"strategy": "gpu0", "rank": 1},
        {"strategy": "cpu"},
    ],
    ids=str,
)
def test_an_interleaved_student_learns_as_a_plain_one(teacher: dict[str, Any], tmp_path: Path) -> None:
    plain = run_ranks(1, train_and_read, gentle(tiny_config(tmp_path / "plain", kd=PAIRS, student=LAYERS)))[0]
    student = {"pp": 2, "micro_batch_size": 2, "student": CHUNKS}
    records = run_ranks(2, train_and_read, gentle(placed_config(tmp_path, student, teacher, kd=PAIRS)))[0]
    assert_equal_runs(records, plain)


def test_an_interleaved_student_without_a_teacher_learns_as_a_plain_one(tmp_path: Path) -> None:
    plain = run_ranks(1, train_and_read, tiny_config(tmp_path / "plain", student=LAYERS, distilled=False))[0]
    chunks = tiny_config(tmp_path / "chunks", pp=2, micro_batch_size=2, student=CHUNKS, distilled=False)
    assert_equal_runs(run_ranks(2, train_and_read, chunks)[0], plain)


@pytest.mark.parametrize(
    "kd",
    [
        {"logits_form": "materialised"},
        {"logit_kl_topk": 5},
        {"loss_balancer": "static", "skip_lm_loss": False, "kd_loss_scale": 0.7},
        {"logits_form": "materialised", "skip_lm_loss": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_every_form_of_the_losses(kd: dict[str, Any], sequence_parallel: bool, tmp_path: Path) -> None:
    plain = run_ranks(1, train_and_read, tiny_config(tmp_path / "plain", kd=kd))[0]
    student = {"tp": 2, "micro_batch_size": 4, "sequence_parallel": sequence_parallel}
    cfg = placed_config(tmp_path, student, {"strategy": "balanced", "pp": 2}, kd=kd)
    assert_equal_runs(run_ranks(2, train_and_read, cfg)[0], plain)


def test_modelopts_balancer_reads_from_a_distant_teacher(tmp_path: Path) -> None:
    """Its ratios cover a micro-batch on a rank, so only runs with the same split are comparable."""
    kd = {"loss_balancer": "modelopt", "skip_lm_loss": False}
    plain = run_ranks(2, train_and_read, tiny_config(tmp_path / "plain", tp=2, micro_batch_size=4, kd=kd))[0]
    student = {"tp": 2, "micro_batch_size": 4}
    cfg = placed_config(tmp_path, student, {"strategy": "balanced", "pp": 2}, kd=kd)
    assert_equal_runs(run_ranks(2, train_and_read, cfg)[0], plain)


def test_pairs_of_recomputed_layers_on_different_stages(tmp_path: Path) -> None:
    plain = run_ranks(1, train_and_read, gentle(tiny_config(tmp_path / "plain", kd=PAIRS, student=LAYERS)))[0]
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    student = {"pp": 2, "micro_batch_size": 2, "student": {**LAYERS, **recompute}}
    cfg = placed_config(tmp_path, student, {"strategy": "balanced", "tp": 2}, kd=PAIRS)
    assert_equal_runs(run_ranks(2, train_and_read, gentle(cfg))[0], plain)


def test_a_bf16_teacher_of_an_fp32_student_in_a_pipeline(tmp_path: Path) -> None:
    """Which a co-located teacher, whose hidden states travel with the student's, cannot be."""
    one = tiny_config(tmp_path / "plain")
    one.model.teacher_dtype = "bfloat16"
    plain = run_ranks(1, train_and_read, one)[0]
    cfg = placed_config(tmp_path, {"pp": 2, "micro_batch_size": 4}, {"strategy": "gpu0"})
    cfg.model.teacher_dtype = "bfloat16"
    assert_equal_runs(run_ranks(2, train_and_read, cfg)[0], plain)
