"""Student + teacher + losses = one ModelOpt distillation model and the objective it is trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn

from megatron_kd.config.kd_config import ModelOptDistillConfig, why_materialised
from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.captured import HiddenCriterion, LogitsCriterion, ModelOptDistillation
from megatron_kd.distillation.forward import Forward
from megatron_kd.distillation.logits import ComparedLogits, FusedLogits, LogitsLoss, MaterialisedLogits
from megatron_kd.distillation.objective import Distillation
from megatron_kd.distillation.pairs import LayerPair, inject_pairs, pairs_of_rank
from megatron_kd.models.gpt import DistillableGPTModel, Headed, no_head
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.modelopt import mtd, mtd_megatron
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Teacher


@dataclass(frozen=True)
class BuiltDistillation:
    """This rank's chunks of the student, those that losses read from as distillation models, and the objective.

    The forward of a distillation model runs what it has of the teacher, and then the student.
    """

    models: list[DistillableGPTModel]
    objective: Distillation | ModelOptDistillation


def build_distillation(
    students: list[DistillableGPTModel],
    teacher: Teacher,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    in_flight: InFlight[Forward],
    *,
    seed: int,
) -> BuiltDistillation:
    """Make `students` learn from `teacher`.

    Args:
        students: this rank's chunks, one without a virtual pipeline; changed in place, as ModelOpt does.
        teacher: wherever it lives.
        kd_config: losses and layer pairs.
        layout: this rank's place in the student's layout.
        in_flight: where both models' parts find the forward under way.
        seed: of the projections between hidden sizes that differ.

    Raises:
        InputError: a layer pair that this layout does not support.
    """
    pairs = pairs_of_rank(students, teacher, kd_config, layout, seed)
    models = [
        _convert(student, chunk, teacher, [p for p in pairs if p.chunk == chunk], kd_config, layout)
        for chunk, student in enumerate(students)
    ]
    balancer, head = Balancer(kd_config), models[-1] if models[-1].post_process else None
    if kd_config.loss_balancer == "modelopt":
        return BuiltDistillation(models, ModelOptDistillation(head, balancer, layout, in_flight))
    logits = None if head is None else _logits_loss(head, kd_config, layout)
    inject_pairs(models, pairs, max(len(kd_config.intermediate_layer_pairs), 1), layout, in_flight)
    return BuiltDistillation(models, Distillation(head, logits, balancer, in_flight))


def projection_sharded_state(models: list[DistillableGPTModel], layout: Layout) -> dict[str, ShardedTensor]:
    """The projections' tensors under keys of their own, apart from the student's; empty where there are none."""
    replica = (0, layout.tp.rank, layout.dp.rank)
    return {
        name: ShardedTensor.from_rank_offsets(f"kd.projections.{name}", parameter, replica_id=replica)
        for model in distillation_models(models)
        for name, parameter in model.loss_modules.named_parameters()
    }


def load_projections(models: list[DistillableGPTModel], state: dict[str, torch.Tensor]) -> None:
    """Put back what `projection_sharded_state` named."""
    for model in distillation_models(models):
        model.loss_modules.load_state_dict({name: state[name] for name, _ in model.loss_modules.named_parameters()})


def distillation_models(models: Sequence[nn.Module]) -> list[mtd.DistillationModel]:
    """Those of a rank's chunks that losses read from."""
    return [model for model in models if isinstance(model, mtd.DistillationModel)]


@contextmanager
def plain_students(models: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which no chunk shows a teacher or a projection among its submodules."""
    with ExitStack() as stack:
        for model in distillation_models(models):
            stack.enter_context(model.hide_teacher_model())
            stack.enter_context(model.hide_loss_modules())
        yield


@contextmanager
def hidden_teachers(models: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which no chunk shows a teacher among its submodules."""
    with ExitStack() as stack:
        for model in distillation_models(models):
            stack.enter_context(model.hide_teacher_model())
        yield


def _convert(
    student: DistillableGPTModel,
    chunk: int,
    teacher: Teacher,
    pairs: list[LayerPair],
    kd_config: ModelOptDistillConfig,
    layout: Layout,
) -> DistillableGPTModel:
    module = teacher.module(chunk)
    if module is None:
        return student
    criterion = _criteria(student, module, pairs, kd_config, layout) if kd_config.loss_balancer == "modelopt" else {}
    settings = {"teacher_model": module, "criterion": criterion, "loss_balancer": _NoBalancer()}
    model = mtd.convert(student, mode=[("kd_loss", settings)])
    # Set by us in the order of the pairs: ModelOpt collects them in a set, whose order differs between ranks.
    model._loss_modules = nn.ModuleDict({str(p.index): p.projection for p in pairs if p.projection is not None})
    if teacher.in_student_pipeline:
        # Two models in one pipeline: hidden states travel concatenated.
        mtd_megatron.adjust_distillation_model_for_mcore(
            model, mtd_megatron.DistillationConfig(skip_lm_loss=kd_config.skip_lm_loss)
        )
    return model


def _criteria(
    student: DistillableGPTModel,
    teacher: nn.Module,
    pairs: list[LayerPair],
    kd_config: ModelOptDistillConfig,
    layout: Layout,
) -> dict[tuple[str, str], nn.Module]:
    """The layers that ModelOpt captures and compares under its own balancer; logits come first."""
    criteria: dict[tuple[str, str], nn.Module] = {}
    if student.post_process:
        compared = _compared_logits(student, teacher, kd_config, layout)
        criteria[(kd_config.logit_layers[0], kd_config.logit_layers[1])] = LogitsCriterion(compared)
    criteria.update({(pair.student, pair.teacher): HiddenCriterion(pair) for pair in pairs})
    return criteria


def _logits_loss(head: mtd.DistillationModel, kd_config: ModelOptDistillConfig, layout: Layout) -> LogitsLoss:
    """The loss of the last stage's logits; neither model's output layer runs unless it asks for logits."""
    teacher = head.teacher_model
    teacher.head_function = no_head
    if why_materialised(kd_config):
        compared = _compared_logits(head, teacher, kd_config, layout)
        return MaterialisedLogits(teacher, compared, skip_lm_loss=kd_config.skip_lm_loss)
    return FusedLogits(teacher, kd_config, layout, sequence_parallel=head.config.sequence_parallel)


def _compared_logits(
    student: Headed, teacher: Headed, kd_config: ModelOptDistillConfig, layout: Layout
) -> ComparedLogits:
    """Over the ids, from 0 on, that both models have."""
    sizes = [size for size in (student.true_vocab_size, teacher.true_vocab_size) if size is not None]
    return ComparedLogits(kd_config, min(sizes, default=None), layout.tp.group)


class _NoBalancer(mtd.DistillationLossBalancer):
    """ModelOpt asks for a balancer with several criteria; the objective weighs the losses itself."""

    def forward(self, loss: dict[str, Any]) -> Any:
        raise AssertionError("the objective weighs the losses")
