"""Student + teacher + losses = one ModelOpt distillation model."""

from __future__ import annotations

import re
from typing import Any

import modelopt.torch.distill as mtd
import modelopt.torch.distill.plugins.megatron as mtd_megatron
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import nn

from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.criteria import HiddenCosine, LogitsDivergence, logits_options
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.|$)")


def build_distillation(
    student: DistillableGPTModel,
    teacher: DistillableGPTModel,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    *,
    seed: int,
) -> mtd.DistillationModel:
    """Turn `student` into a distillation model that holds `teacher`, frozen.

    Its forward runs the teacher, then the student. The layers of `kd_config.intermediate_layer_pairs` are captured
    on the way, and so are the output layers in the materialised form of the logit loss.

    Args:
        student: this rank's part; changed in place, as ModelOpt does.
        teacher: this rank's part, in the same parallel layout.
        kd_config: losses and layer pairs.
        layout: this rank's place.
        seed: of the projections between hidden sizes that differ.
    """
    criterion: dict[tuple[str, str], nn.Module] = {}
    if layout.is_last_stage:
        if not uses_fused_logits(kd_config):
            options = logits_options(kd_config, student.true_vocab_size)
            criterion[tuple(kd_config.logit_layers)] = LogitsDivergence(options, layout.tp.group)  # type: ignore[index]
        criterion.update(_hidden_criteria(student, teacher, kd_config, layout, seed))
    model = mtd.convert(
        student,
        mode=[("kd_loss", {"teacher_model": teacher, "criterion": criterion, "loss_balancer": _NoBalancer()})],
    )
    # ModelOpt collects the criteria that have parameters in a set, whose order differs between ranks.
    model._loss_modules = nn.ModuleList([c for c in criterion.values() if any(True for _ in c.parameters())])
    mtd_megatron.adjust_distillation_model_for_mcore(
        model, mtd_megatron.DistillationConfig(skip_lm_loss=kd_config.skip_lm_loss)
    )
    return model


def uses_fused_logits(kd_config: ModelOptDistillConfig) -> bool:
    """Whether the logit loss is computed without logits: its weight must be known before the forward pass."""
    if kd_config.logits_form == "auto":
        return kd_config.loss_balancer != "modelopt"
    return kd_config.logits_form == "fused"


def projection_sharded_state(model: mtd.DistillationModel, layout: Layout) -> dict[str, ShardedTensor]:
    """The projections' tensors under keys of their own, apart from the student's; empty where there are none."""
    replica = (0, layout.tp.rank, layout.dp.rank)
    return {
        name: ShardedTensor.from_rank_offsets(f"kd.projections.{name}", parameter, replica_id=replica)
        for name, parameter in model.loss_modules.named_parameters()
    }


def load_projections(model: mtd.DistillationModel, state: dict[str, torch.Tensor]) -> None:
    """Put back what `projection_sharded_state` named."""
    model.loss_modules.load_state_dict(state)


class _NoBalancer(mtd.DistillationLossBalancer):
    """ModelOpt asks for a balancer with several criteria; the objective weighs the losses itself."""

    def forward(self, loss: dict[str, Any]) -> Any:
        raise AssertionError("the objective weighs the losses")


def _hidden_criteria(
    student: DistillableGPTModel,
    teacher: DistillableGPTModel,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    seed: int,
) -> dict[tuple[str, str], nn.Module]:
    criteria: dict[tuple[str, str], nn.Module] = {}
    for index, (student_layer, teacher_layer) in enumerate(kd_config.intermediate_layer_pairs):
        projection = _projection(student, teacher, layout, seed + index)
        pair = (_local_name(student_layer, student, layout), _local_name(teacher_layer, teacher, layout))
        criteria[pair] = HiddenCosine(projection)
    return criteria


def _projection(
    student: DistillableGPTModel, teacher: DistillableGPTModel, layout: Layout, seed: int
) -> nn.Linear | None:
    here, there = student.config.hidden_size, teacher.config.hidden_size
    if here == there:
        return None
    linear = nn.Linear(here, there, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, student.config.init_method_std, generator=generator)
        linear.bias.zero_()
    for parameter in linear.parameters():
        # Each rank sees its part of the sequence: megatron-core is to sum the gradients over the TP group.
        parameter.sequence_parallel = student.config.sequence_parallel  # type: ignore[attr-defined]
    return linear.to(layout.device)


def _local_name(name: str, model: DistillableGPTModel, layout: Layout) -> str:
    """Layer names count layers from 0 over the whole model; a pipeline stage counts its own from 0."""
    offset = get_transformer_layer_offset(model.config, pp_rank=layout.pp.rank)
    return _LAYER.sub(lambda match: str(int(match.group()) - offset), name)
