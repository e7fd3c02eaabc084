"""`Run`: all the parts of a training run on one rank, and how they are put together; `ForwardRun` without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import nn

from megatron_kd.checkpoints.model_weights import load_scales, load_weights
from megatron_kd.checkpoints.saved_state import BY_EPOCH
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.measured import best_metric
from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.convert import build_distillation, hidden_teachers
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.objective import LanguageModelling, Objective
from megatron_kd.huggingface.read import load_huggingface
from megatron_kd.models.build_gpt import DTYPES
from megatron_kd.models.fake_quantization import fake_quantise
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.watch import Doing
from megatron_kd.students.from_teacher import load_from_teacher
from megatron_kd.teachers.auto import ChosenStrategy, choose_strategy
from megatron_kd.teachers.build_teacher import build_teacher
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Teacher
from megatron_kd.training.best_validation import Best
from megatron_kd.training.optimizer import build_optimizer, build_scheduler, in_precision, wrap_for_training


@dataclass(kw_only=True)
class ForwardRun:
    """One rank's part of what a forward pass and its losses take. `step` counts finished steps.

    Attributes:
        students: this rank's chunks of the student, one without a virtual pipeline; inside the wrappers of `chunks`.
        chunks: the same, wrapped in their precision and, to be trained, in data parallelism.
        teacher: None where the run has none.
        placement: the strategy of its teacher and how it was chosen.
        doing: the phase of the step that this rank is in, for others to know when it does not respond.
    """

    cfg: ConfigContainer
    derived: Derived
    layout: Layout
    students: list[DistillableGPTModel]
    chunks: Sequence[nn.Module]
    teacher: Teacher | None
    objective: Objective
    placement: ChosenStrategy | None
    doing: Doing
    step: int = 0

    @property
    def balancer(self) -> Balancer | None:
        """The loss balancer, where this run has one."""
        return self.objective.balancer


@dataclass(kw_only=True)
class Run(ForwardRun):
    """One rank's part of a run that trains.

    Attributes:
        best: the validations so far, and the best of them.
        consumed_samples: training samples that the finished steps have read.
        data_order: the order in which text is read.
        inputs: digests of what the run reads, by field.
    """

    chunks: list[DistributedDataParallel]
    optimizer: ChainedOptimizer
    scheduler: OptimizerParamScheduler
    best: Best
    consumed_samples: int = 0
    data_order: str = BY_EPOCH
    inputs: Mapping[str, str] = field(default_factory=dict)


def build_run(cfg: ConfigContainer, derived: Derived, layout: Layout) -> Run:
    """Build models, losses, optimizer and schedule, with the weights the run starts from.

    Raises:
        InputError: a checkpoint that does not fit the model it is loaded into.
    """
    models = build_forward(cfg, derived, layout)
    with hidden_teachers(models.students):
        # Both walk over every registered submodule; the teacher keeps its own precision and has no gradients.
        chunks = wrap_for_training(models.chunks, cfg, layout, models.doing)
        optimizer = build_optimizer(chunks, cfg, DTYPES[derived.student_dtype])
    scheduler = build_scheduler(optimizer, cfg, derived)
    best = Best(best_metric(cfg))
    return Run(**{**vars(models), "chunks": chunks}, optimizer=optimizer, scheduler=scheduler, best=best)


def build_forward(cfg: ConfigContainer, derived: Derived, layout: Layout) -> ForwardRun:
    """Build models and losses, with the weights the run starts from: what evaluation takes, without any gradient.

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
    if cfg.model.quantization is not None:
        _quantise(students, cfg, cfg.model.quantization, layout)
    teacher: Teacher | None = None
    placement: ChosenStrategy | None = None
    objective: Objective
    if (model := cfg.distillation) is not None:
        placement = choose_strategy(cfg, model, derived, layout)
        in_flight: InFlight[Forward] = InFlight()
        teacher = build_teacher(cfg, model, derived, layout, placement.strategy, in_flight)
        built = build_distillation(students, teacher, model.kd_config, layout, in_flight, seed=cfg.rng.seed)
        students, objective = built.models, built.objective
    else:
        objective = LanguageModelling(students[-1] if students[-1].post_process else None)
    with hidden_teachers(students):
        chunks = [in_precision(student) for student in students]
    return ForwardRun(
        cfg=cfg, derived=derived, layout=layout, students=students, chunks=chunks, teacher=teacher,
        objective=objective, placement=placement, doing=Doing(),
    )  # fmt: skip


def _quantise(students: list[DistillableGPTModel], cfg: ConfigContainer, quantization: str, layout: Layout) -> None:
    """Fake-quantise the student, by the scales that its checkpoint brings if it was quantised alike."""
    for student in students:
        fake_quantise(student, quantization, layout.device)
    origin = cfg.checkpoint.pretrained_checkpoint
    if origin:
        load_scales(students, origin, "checkpoint.pretrained_checkpoint", quantization)


def _build_student(cfg: ConfigContainer, derived: Derived, layout: Layout, chunk: int) -> DistillableGPTModel:
    return cfg.model.provide(
        layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=derived.true_vocab_size,
        dtype=derived.student_dtype,
        seed=cfg.rng.seed if cfg.model.init == "random" else None,
        chunk=chunk,
    )
