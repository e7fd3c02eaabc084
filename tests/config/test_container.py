"""Whether a run has a teacher: decided by the container, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import megatron_kd
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from tests.config.base import distillation, plain

PACKAGE = Path(megatron_kd.__file__).parent


def test_a_distillation_has_a_student_a_teacher_and_losses() -> None:
    cfg = distillation()
    model, models = cfg.distillation, cfg.models
    assert model is cfg.model and isinstance(model, GPTDistillationProvider)
    assert (models.student, models.teacher, models.kd) == (model, model.teacher, model.kd_config)
    assert models.by_field() == [("model", model), ("model.teacher", model.teacher)]


def test_a_run_on_labels_has_a_student_alone() -> None:
    cfg = plain()
    assert cfg.distillation is None
    assert (cfg.models.student, cfg.models.teacher, cfg.models.kd) == (cfg.model, None, None)
    assert cfg.models.by_field() == [("model", cfg.model)]


def test_nothing_else_asks_for_the_class_of_the_model() -> None:
    asks = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("isinstance", "type", "issubclass")
        and "GPTDistillationProvider" in ast.unparse(node)
    }
    assert asks == {"config/container.py"}
