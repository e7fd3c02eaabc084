"""`Run`: all the parts of a training run on one rank, and how they are put together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import modelopt.torch.distill as mtd
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import nn

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.convert import build_distillation
from megatron_kd.distillation.objective import LanguageModelling, Objective
from megatron_kd.distillation.provider import GPTDistillationProvider
from megatron_kd.models.build import DTYPES
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout
from megatron_kd.training.optimizer import build_optimizer, build_scheduler, wrap_for_training
from megatron_kd.training.weights import load_weights


@dataclass
class Run:
    """One rank's part of a run. `student` is the model inside `model`'s wrappers; `step` counts finished steps."""

    cfg: ConfigContainer
    derived: Derived
    layout: Layout
    model: DistributedDataParallel
    student: DistillableGPTModel
    objective: Objective
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    step: int = 0

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, where this run has one."""
        return self.student.teacher_model if isinstance(self.student, mtd.DistillationModel) else None

    @property
    def balancer(self) -> Balancer | None:
        """The loss balancer, where this run has one."""
        return getattr(self.objective, "balancer", None)

    def hidden_teacher(self) -> Any:
        """A context in which the student shows no teacher among its submodules."""
        if isinstance(self.student, mtd.DistillationModel):
            return self.student.hide_teacher_model()
        return contextlib.nullcontext()


def build_run(cfg: ConfigContainer, derived: Derived, layout: Layout) -> Run:
    """Build models, losses, optimizer and schedule, with the weights the run starts from.

    Raises:
        InputError: a checkpoint that does not fit the model it is loaded into.
    """
    student = _build_student(cfg, derived, layout)
    objective: Objective = LanguageModelling()
    hidden: Any = contextlib.nullcontext()
    if isinstance(cfg.model, GPTDistillationProvider):
        teacher = _build_teacher(cfg, cfg.model, derived, layout)
        built = build_distillation(student, teacher, cfg.model.kd_config, layout, seed=cfg.rng.seed)
        student, objective = built.model, built.objective
        hidden = student.hide_teacher_model()
    with hidden:
        # Both walk over every registered submodule; the teacher keeps its own precision and has no gradients.
        model = wrap_for_training(student, cfg, layout)
        optimizer = build_optimizer(model, cfg, DTYPES[derived.student_dtype])
    scheduler = build_scheduler(optimizer, cfg, derived)
    return Run(cfg, derived, layout, model, student, objective, optimizer, scheduler)


def _build_student(cfg: ConfigContainer, derived: Derived, layout: Layout) -> DistillableGPTModel:
    random = cfg.model.init == "random"
    student = cfg.model.provide(
        layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=derived.true_vocab_size,
        dtype=derived.student_dtype,
        seed=cfg.rng.seed if random else None,
    )
    if cfg.checkpoint.pretrained_checkpoint:
        load_weights(student, cfg.checkpoint.pretrained_checkpoint, "checkpoint.pretrained_checkpoint")
    return student


def _build_teacher(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout
) -> DistillableGPTModel:
    provider = model.teacher
    teacher = provider.provide(
        layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=derived.true_vocab_size,
        dtype=derived.teacher_dtype or derived.student_dtype,
        # Not the student's seed: a teacher of the student's shape would be the student.
        seed=cfg.rng.seed + 1 if provider.init == "random" else None,
    )
    if provider.checkpoint:
        load_weights(teacher, provider.checkpoint, "model.teacher.checkpoint")
    return teacher.requires_grad_(False).eval()
