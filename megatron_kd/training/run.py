"""`Run`: all the parts of a training run on one rank, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_kd.checkpoints.background import BackgroundSave
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.convert import build_distillation, hidden_teachers
from megatron_kd.distillation.objective import LanguageModelling, Objective
from megatron_kd.distillation.provider import GPTDistillationProvider
from megatron_kd.huggingface.read import load_huggingface
from megatron_kd.losses.checks import Faults
from megatron_kd.models.build import DTYPES
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.pruning.from_teacher import load_from_teacher
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.signals import StopSignals
from megatron_kd.runtime.watch import Doing
from megatron_kd.teachers.auto import ChosenStrategy, choose_strategy
from megatron_kd.teachers.build import build_teacher
from megatron_kd.teachers.placement import Teacher
from megatron_kd.training.best import Best
from megatron_kd.training.optimizer import build_optimizer, build_scheduler, wrap_for_training
from megatron_kd.training.weights import load_weights


@dataclass
class Run:
    """One rank's part of a run. `step` counts finished steps.

    Attributes:
        students: this rank's chunks of the student, one without a virtual pipeline; inside the wrappers of `chunks`.
        chunks: the same, wrapped in their precision and in data parallelism.
        teacher: None where the run has none.
        placement: the strategy of its teacher and how it was chosen.
        faults: what the losses of this rank found wrong since the last step.
        doing: the phase of the step that this rank is in, for others to know when it does not answer.
        best: the best validation so far.
        saving: the checkpoint that is being written in the background, if one is.
        stop: the signals that this rank was sent.
        stopping: a rank was asked to stop; equal on every rank after the same step.
    """

    cfg: ConfigContainer
    derived: Derived
    layout: Layout
    students: list[DistillableGPTModel]
    chunks: list[DistributedDataParallel]
    teacher: Teacher | None
    objective: Objective
    optimizer: ChainedOptimizer
    scheduler: OptimizerParamScheduler
    placement: ChosenStrategy | None
    faults: Faults
    doing: Doing
    step: int = 0
    best: Best | None = None
    saving: BackgroundSave = field(default_factory=BackgroundSave)
    stop: StopSignals = field(default_factory=StopSignals)
    stopping: bool = False

    @property
    def packed(self) -> bool:
        """Whether a row holds several samples, none of which sees another."""
        return self.cfg.dataset.packed_sequence

    @property
    def balancer(self) -> Balancer | None:
        """The loss balancer, where this run has one."""
        return getattr(self.objective, "balancer", None)


def build_run(cfg: ConfigContainer, derived: Derived, layout: Layout) -> Run:
    """Build models, losses, optimizer and schedule, with the weights the run starts from.

    Raises:
        InputError: a checkpoint that does not fit the model it is loaded into.
    """
    students = [_build_student(cfg, derived, layout, chunk) for chunk in range(layout.chunks)]
    if cfg.checkpoint.pretrained_checkpoint:
        load_weights(students, cfg.checkpoint.pretrained_checkpoint, "checkpoint.pretrained_checkpoint")
    elif cfg.model.hf_path is not None:
        load_huggingface(students, cfg.model, "model.hf_path")
    elif cfg.model.init == "from_teacher":
        load_from_teacher(students, cfg, derived)
    faults, doing = Faults(layout.device), Doing()
    for student in students:
        student.faults = faults
    teacher: Teacher | None = None
    placement: ChosenStrategy | None = None
    objective: Objective = LanguageModelling()
    if isinstance(cfg.model, GPTDistillationProvider):
        placement = choose_strategy(cfg, cfg.model, derived, layout)
        teacher = build_teacher(cfg, cfg.model, derived, layout, placement.strategy)
        built = build_distillation(students, teacher, cfg.model.kd_config, layout, seed=cfg.rng.seed)
        students, objective = built.models, built.objective
    with hidden_teachers(students):
        # Both walk over every registered submodule; the teacher keeps its own precision and has no gradients.
        chunks = wrap_for_training(students, cfg, layout, doing)
        optimizer = build_optimizer(chunks, cfg, DTYPES[derived.student_dtype])
    scheduler = build_scheduler(optimizer, cfg, derived)
    return Run(
        cfg, derived, layout, students, chunks, teacher, objective, optimizer, scheduler, placement, faults, doing
    )


def _build_student(cfg: ConfigContainer, derived: Derived, layout: Layout, chunk: int) -> DistillableGPTModel:
    return cfg.model.provide(
        layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=derived.true_vocab_size,
        dtype=derived.student_dtype,
        seed=cfg.rng.seed if cfg.model.init == "random" else None,
        chunk=chunk,
    )
