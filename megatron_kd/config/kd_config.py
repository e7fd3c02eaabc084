"""How a student learns from a teacher: the losses, their layers and their balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_kd.config.kd_rules import kd_config_problems
from megatron_kd.config.on_resume import Fixed, Free
from megatron_kd.config.section_file import read_section
from megatron_kd.losses.kinds import PARAMETERS, Divergence, DivergenceKind, Tail, Truncation


def _final_layernorm_pair() -> list[list[str]]:
    return [["decoder.final_layernorm", "decoder.final_layernorm"]]


@dataclass(kw_only=True)
class ModelOptDistillConfig:
    """Settings of the distillation losses.

    Attributes:
        logit_layers: names of the student's and the teacher's logit layer.
        intermediate_layer_pairs: pairs of layer names, student's first, with a loss between their outputs: cosine, or
            what a third element names (cosine, mse, smooth_l1). Layers are counted over the whole model, from 0; both
            of a pair must be on one pipeline stage and output the full hidden dimension (norms do). Where the
            hidden sizes differ, each pair has a trained projection of its own to the teacher's.
        skip_lm_loss: leave the language-modelling loss out of training.
        kd_loss_scale: with the LM loss in, the cumulative logits-and-intermediate loss is scaled to this many
            times the magnitude of the LM loss. Not used when `skip_lm_loss` is true.
        logit_kl_temperature: both models' logits are divided by it before the softmax.
        loss_balancer: `global` scales by the token-weighted, all-reduced losses of the previous step (1.0 on
            the first); `static` by the two weights below; `modelopt` by ModelOpt's own ratios of each
            micro-batch and rank, which make a step depend on how its batch is split.
        logits_loss_kind: the divergence of the student's from the teacher's next-token distribution. ModelOpt's, and
            the default, is forward_kl, KL(teacher || student).
        logits_loss_beta: weight of the teacher in `jsd` (generalised Jensen-Shannon, Agarwal et al. 2023).
        logits_loss_alpha: skew of the two skewed KLs (Ko et al. 2024).
        temperature_squared: multiply the logit loss by the temperature squared (Hinton et al. 2015), so that its
            gradient keeps its size as the temperature grows; off is ModelOpt's convention.
        logit_kl_topk: compare only the teacher's top-k tokens, and the mass of the rest by
            `logit_kl_topk_tail`; the student stays normalised over the whole vocabulary. None compares all tokens.
        logit_kl_topk_tail: `bucket` compares the mass of all other tokens as one more outcome, `renormalise` scales
            the teacher's top-k tokens to sum to 1, `ignore` leaves the rest out.
        logits_form: `fused` computes losses and gradients from hidden states and heads, chunk by chunk, so that the
            logits of neither model ever exist; `materialised` keeps both models' logits; `auto` is fused wherever
            the weights of the losses are known before the forward pass, i.e. unless `loss_balancer` is modelopt, and
            all tokens are compared.
        logits_loss_weight, intermediate_loss_weight: the weights of the `static` balancer, whose total is
            `lm_loss + kd_loss_scale * (w_logits * logits_loss + w_intermediate * intermediate_loss)`
            without the LM term and `kd_loss_scale` when `skip_lm_loss` is true.
    """

    logit_layers: Fixed[list[str]] = field(default_factory=lambda: ["output_layer", "output_layer"])
    intermediate_layer_pairs: Fixed[list[list[str]]] = field(default_factory=_final_layernorm_pair)
    skip_lm_loss: Fixed[bool] = True
    kd_loss_scale: Fixed[float] = 1.0
    logit_kl_temperature: Fixed[float] = Divergence.temperature
    loss_balancer: Fixed[Literal["global", "static", "modelopt"]] = "global"
    logits_loss_kind: Fixed[DivergenceKind] = Divergence.kind
    logits_loss_beta: Fixed[float] = Divergence.beta
    logits_loss_alpha: Fixed[float] = Divergence.alpha
    temperature_squared: Fixed[bool] = Divergence.temperature_squared
    logit_kl_topk: Fixed[int | None] = None
    logit_kl_topk_tail: Fixed[Tail] = Truncation.tail
    logits_form: Free[Literal["auto", "fused", "materialised"]] = "auto"
    logits_loss_weight: Fixed[float] = 1.0
    intermediate_loss_weight: Fixed[float] = 1.0

    @property
    def divergence(self) -> Divergence:
        """The divergence of the logit loss."""
        own = {name: getattr(self, f"logits_loss_{name}") for name in PARAMETERS}
        return Divergence(
            kind=self.logits_loss_kind,
            temperature=self.logit_kl_temperature,
            temperature_squared=self.temperature_squared,
            **own,
        )

    @property
    def truncation(self) -> Truncation | None:
        """Which of the teacher's tokens the logit loss compares; None for all."""
        return None if self.logit_kl_topk is None else Truncation(self.logit_kl_topk, self.logit_kl_topk_tail)

    @classmethod
    def from_yaml(cls, path: str | Path) -> ModelOptDistillConfig:
        """Read a YAML file whose keys are fields of this class.

        Raises:
            ConfigError: unknown keys, wrong types or impossible values, all of them at once.
        """
        return read_section(path, cls(), ("model", "kd_config"), kd_config_problems)


def why_materialised(kd: ModelOptDistillConfig) -> str | None:
    """Why both models' logits are kept; None where the losses are computed without them.

    Without logits, the weights of the losses must be known before the forward pass.
    """
    if kd.logits_form == "materialised":
        return "model.kd_config.logits_form=materialised"
    if kd.logit_kl_topk is not None:
        return f"model.kd_config.logit_kl_topk={kd.logit_kl_topk} picks among the teacher's logits"
    if kd.loss_balancer == "modelopt":
        return "model.kd_config.loss_balancer=modelopt weighs the losses after the forward pass"
    return None
