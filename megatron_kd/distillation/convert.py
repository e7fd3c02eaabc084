"""Student + teacher + losses = one ModelOpt distillation model and the objective it is trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import modelopt.torch.distill as mtd
import modelopt.torch.distill.plugins.megatron as mtd_megatron
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn

from megatron_kd.distillation.balance import Balancer
from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.criteria import HiddenLoss, LogitsDivergence
from megatron_kd.distillation.logits import FusedLogits, MaterialisedLogits
from megatron_kd.distillation.objective import Distillation, ModelOptDistillation
from megatron_kd.distillation.pairs import InjectedPairs, LayerPair, pairs_of_stage
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout


@dataclass(frozen=True)
class BuiltDistillation:
    """A distillation model, whose forward runs the teacher and then the student, and its objective."""

    model: mtd.DistillationModel
    objective: Distillation | ModelOptDistillation


def build_distillation(
    student: DistillableGPTModel,
    teacher: DistillableGPTModel,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    *,
    seed: int,
) -> BuiltDistillation:
    """Turn `student` into a distillation model that holds `teacher`, frozen.

    Args:
        student: this rank's part; changed in place, as ModelOpt does.
        teacher: this rank's part, in the same parallel layout.
        kd_config: losses and layer pairs.
        layout: this rank's place.
        seed: of the projections between hidden sizes that differ.

    Raises:
        InputError: a layer pair that this layout cannot serve.
    """
    pairs = pairs_of_stage(student, teacher, kd_config, layout, seed)
    model = _convert(student, teacher, _criteria(student, pairs, kd_config, layout), kd_config)
    # Set by us in the order of the pairs: ModelOpt collects them in a set, whose order differs between ranks.
    model._loss_modules = nn.ModuleDict({str(p.index): p.projection for p in pairs if p.projection is not None})
    balancer = Balancer(kd_config)
    if kd_config.loss_balancer == "modelopt":
        return BuiltDistillation(model, ModelOptDistillation(model, balancer, layout))
    logits = (FusedLogits if uses_fused_logits(kd_config) else MaterialisedLogits)(model, balancer, layout)
    injected = InjectedPairs(model, teacher, pairs, max(len(kd_config.intermediate_layer_pairs), 1), layout)
    return BuiltDistillation(model, Distillation(logits, injected, balancer, layout))


def uses_fused_logits(kd_config: ModelOptDistillConfig) -> bool:
    """Whether the logit loss is computed without logits: its weight must be known before the forward pass."""
    return why_materialised(kd_config) is None


def why_materialised(kd_config: ModelOptDistillConfig) -> str | None:
    """Why both models' logits are kept; None where they never exist."""
    if kd_config.logits_form == "materialised":
        return "model.kd_config.logits_form=materialised"
    if kd_config.logit_kl_topk is not None:
        return f"model.kd_config.logit_kl_topk={kd_config.logit_kl_topk} picks among the teacher's logits"
    if kd_config.loss_balancer == "modelopt":
        return "model.kd_config.loss_balancer=modelopt weighs the losses after the forward pass"
    return None


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


def _convert(
    student: DistillableGPTModel,
    teacher: DistillableGPTModel,
    criterion: dict[tuple[str, str], nn.Module],
    kd_config: ModelOptDistillConfig,
) -> mtd.DistillationModel:
    settings = {"teacher_model": teacher, "criterion": criterion, "loss_balancer": _NoBalancer()}
    model = mtd.convert(student, mode=[("kd_loss", settings)])
    mtd_megatron.adjust_distillation_model_for_mcore(
        model, mtd_megatron.DistillationConfig(skip_lm_loss=kd_config.skip_lm_loss)
    )
    return model


def _criteria(
    student: DistillableGPTModel, pairs: list[LayerPair], kd_config: ModelOptDistillConfig, layout: Layout
) -> dict[tuple[str, str], nn.Module]:
    """What ModelOpt is to capture and compare: materialised logits, and pairs under its own balancer."""
    criteria: dict[tuple[str, str], nn.Module] = {}
    if layout.is_last_stage and not uses_fused_logits(kd_config):
        logits = LogitsDivergence(kd_config, student.true_vocab_size, layout.tp.group)
        criteria[(kd_config.logit_layers[0], kd_config.logit_layers[1])] = logits
    if kd_config.loss_balancer == "modelopt":
        criteria.update({(p.student, p.teacher): HiddenLoss(p) for p in pairs})
    return criteria


class _NoBalancer(mtd.DistillationLossBalancer):
    """ModelOpt asks for a balancer with several criteria; the objective weighs the losses itself."""

    def forward(self, loss: dict[str, Any]) -> Any:
        raise AssertionError("the objective weighs the losses")
