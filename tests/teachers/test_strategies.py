"""Wherever the teacher lives, in whichever layout: the run is that of a co-located teacher on one rank."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read

COMPARED = ("loss", "lm_loss", "logits_loss", "intermediate_loss", "teacher_top1_agreement", "grad_norm")

# world size, student's layout, teacher's layout and placement
CELLS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "balanced, 1 rank": (1, {"micro_batch_size": 4}, {"strategy": "balanced"}),
    "gpu0, 1 rank": (1, {"micro_batch_size": 4}, {"strategy": "gpu0"}),
    "cpu, 1 rank": (1, {"micro_batch_size": 4}, {"strategy": "cpu"}),
    "balanced: DP2, teacher TP2": (2, {"micro_batch_size": 2}, {"strategy": "balanced", "tp": 2}),
    "balanced: DP2, teacher PP2": (2, {"micro_batch_size": 2}, {"strategy": "balanced", "pp": 2}),
    "balanced: TP2, teacher PP2": (2, {"tp": 2, "micro_batch_size": 4}, {"strategy": "balanced", "pp": 2}),
    "balanced: PP2, teacher TP2": (
        2,
        {"pp": 2, "micro_batch_size": 2},
        {"strategy": "balanced", "tp": 2, "micro_batch_size": 8},
    ),
    "balanced: TP2 with sequence parallel, teacher PP2": (
        2,
        {"tp": 2, "sequence_parallel": True, "micro_batch_size": 4},
        {"strategy": "balanced", "pp": 2, "micro_batch_size": 2},
    ),
    "balanced: DP2, teacher TP2 with sequence parallel": (
        2,
        {"micro_batch_size": 4},
        {"strategy": "balanced", "tp": 2, "sequence_parallel": True},
    ),
    "balanced: DP4, teacher TP2 x PP2": (4, {"micro_batch_size": 1}, {"strategy": "balanced", "tp": 2, "pp": 2}),
    "balanced: TP2 x DP2, teacher PP2 x DP2": (4, {"tp": 2, "micro_batch_size": 2}, {"strategy": "balanced", "pp": 2}),
    "balanced: TP2 x PP2, teacher DP2 x TP2": (
        4,
        {"tp": 2, "pp": 2, "micro_batch_size": 4},
        {"strategy": "balanced", "tp": 2, "micro_batch_size": 3},
    ),
    "balanced: PP2 x DP2, no sizes given": (4, {"pp": 2, "micro_batch_size": 2}, {"strategy": "balanced"}),
    "gpu0: DP2, the teacher on rank 1": (2, {"micro_batch_size": 2}, {"strategy": "gpu0", "rank": 1}),
    "gpu0: TP2 x PP2, the teacher on rank 2": (
        4,
        {"tp": 2, "pp": 2, "micro_batch_size": 2},
        {"strategy": "gpu0", "rank": 2, "micro_batch_size": 4},
    ),
    "cpu: DP2": (2, {"micro_batch_size": 4}, {"strategy": "cpu"}),
    "cpu: DP2, not shared": (2, {"micro_batch_size": 4}, {"strategy": "cpu", "share": False}),
    "cpu: TP2 x PP2": (4, {"tp": 2, "pp": 2, "micro_batch_size": 2}, {"strategy": "cpu"}),
}


def placed_config(folder: Path, student: dict[str, Any], teacher: dict[str, Any], /, **more: Any) -> Any:
    """`tiny_config` with a teacher in another place."""
    cfg = tiny_config(folder, **student, **more)
    teacher = dict(teacher)
    cfg.model.teacher_device_strategy = teacher.pop("strategy")
    cfg.model.teacher_micro_batch_size = teacher.pop("micro_batch_size", None)
    cfg.model.teacher_rank = teacher.pop("rank", 0)
    cfg.model.share_teacher = teacher.pop("share", True)
    cfg.model.teacher = replace(
        cfg.model.teacher,
        tensor_model_parallel_size=teacher.pop("tp", 1),
        pipeline_model_parallel_size=teacher.pop("pp", 1),
        sequence_parallel=teacher.pop("sequence_parallel", False),
    )
    assert not teacher, teacher
    return cfg


@cache
def colocated_on_one_rank(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(1, train_and_read, tiny_config(folder))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("colocated")


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[pytest.mark.slow] if CELLS[cell][0] == 4 else []) for cell in CELLS]
)
def test_the_losses_are_those_of_a_colocated_teacher(cell: str, folder: Path, tmp_path: Path) -> None:
    world_size, student, teacher = CELLS[cell]
    records = run_ranks(world_size, train_and_read, placed_config(tmp_path, student, teacher))[0]
    expected = colocated_on_one_rank(folder)
    assert len(records) == len(expected) == 6
    for record, reference in zip(records, expected, strict=True):
        for name in COMPARED:
            if name in reference:
                assert record[name] == pytest.approx(reference[name], rel=1e-5), (record["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("balanced: TP2, teacher PP2", "fused"),
        ("gpu0: DP2, the teacher on rank 1", "materialised"),
        ("cpu: DP2", "fused"),
    ],
)
def test_a_teacher_of_another_vocabulary_read_from_a_checkpoint_of_another_width(
    cell: str, form: str, tmp_path: Path
) -> None:
    """250 ids saved 256 wide, beside a student of 300 ids; both heads are 384 wide."""
    trained = tiny_config(tmp_path / "teacher", iters=1, distilled=False, save=True)
    run_ranks(1, train_and_read, trained)
    sizes = {
        "student": {"vocab_size": 300},
        "teacher": {"hidden_size": 32, "ffn_hidden_size": 64, "num_layers": 2, "init": None,
                    "checkpoint": str(tmp_path / "teacher")},
        "kd": {"logits_form": form}, "iters": 2,
    }  # fmt: skip
    expected = run_ranks(1, train_and_read, tiny_config(tmp_path / "colocated", **sizes))[0]
    world_size, student, teacher = CELLS[cell]
    records = run_ranks(world_size, train_and_read, placed_config(tmp_path / "placed", student, teacher, **sizes))[0]
    for record, reference in zip(records, expected, strict=True):
        for name in COMPARED:
            if name in reference:
                assert record[name] == pytest.approx(reference[name], rel=1e-5), (record["step"], name)
