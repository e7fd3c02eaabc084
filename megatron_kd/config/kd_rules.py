"""Rules for the settings of the distillation losses that hold whatever the models are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.rules import NOT_NEGATIVE, POSITIVE, Rule
from megatron_kd.config.stages import FINAL_NORM, LAYER_NAME
from megatron_kd.config.values import show
from megatron_kd.losses.kinds import HIDDEN_KINDS, PARAMETERS

if TYPE_CHECKING:
    from megatron_kd.config.kd_config import ModelOptDistillConfig

_SECTION = "model.kd_config."
PAIRS = f"{_SECTION}intermediate_layer_pairs"

KD_RULES: dict[str, Rule] = {
    "kd_loss_scale": POSITIVE,
    "logit_kl_temperature": POSITIVE,
    "logit_kl_topk": POSITIVE,
    "logits_loss_weight": NOT_NEGATIVE,
    "intermediate_loss_weight": NOT_NEGATIVE,
    **{f"logits_loss_{name}": Rule(parameter.holds, parameter.words) for name, parameter in PARAMETERS.items()},
}


def kd_config_problems(kd: ModelOptDistillConfig) -> Iterator[Problem]:
    """Everything impossible in the settings of the losses on their own."""
    for name, rule in KD_RULES.items():
        value = getattr(kd, name)
        if value is not None and not rule.holds(value):
            yield _problem(kd, name, rule.words)
    yield from contradictions(kd)


def contradictions(kd: ModelOptDistillConfig) -> Iterator[Problem]:
    """Names of layers and losses that do not exist, and settings that exclude each other."""
    yield from _layer_names(kd)
    yield from _logits_form(kd)


def pair_problem(pair: Sequence[str], why: str, cure: str) -> Problem:
    """The problem of one of the layer pairs, which is shown alone."""
    return Problem((Setting(PAIRS, show(list(pair))),), why, cure)


def _problem(kd: ModelOptDistillConfig, names: str, why: str, cure: str = "") -> Problem:
    return Problem.of(kd, names, why, cure, at=_SECTION)


def _logits_form(kd: ModelOptDistillConfig) -> Iterator[Problem]:
    if kd.logit_kl_topk is not None and kd.logits_form == "fused":
        cure = "set model.kd_config.logits_form=auto"
        yield _problem(kd, "logit_kl_topk logits_form", "the top k are picked among logits", cure)
    if kd.logit_kl_topk is not None and kd.logits_loss_kind != "forward_kl":
        cure = "set model.kd_config.logits_loss_kind=forward_kl"
        yield _problem(kd, "logit_kl_topk logits_loss_kind", "the top-k loss is a forward KL", cure)
    if kd.logits_form == "fused" and kd.loss_balancer == "modelopt":
        why = (
            "the fused loss must know its weights before the forward pass, and ModelOpt's balancer computes them after "
            "it"
        )
        cure = "set model.kd_config.logits_form=auto, or model.kd_config.loss_balancer=global"
        yield _problem(kd, "logits_form loss_balancer", why, cure)


def _layer_names(kd: ModelOptDistillConfig) -> Iterator[Problem]:
    if kd.logit_layers != ["output_layer", "output_layer"]:
        why = "the logits of a GPT model come from its output_layer"
        yield _problem(kd, "logit_layers", why, "write [output_layer, output_layer]")
    for index, pair in enumerate(kd.intermediate_layer_pairs):
        if len(pair) not in (2, 3):
            why = "must be a pair, [student layer, teacher layer], or end in a loss's name"
            yield pair_problem(pair, why, "write two or three names")
        elif pair in kd.intermediate_layer_pairs[:index]:
            yield pair_problem(pair, "is listed twice", "leave one out")
        else:
            yield from _unknown_names(pair)


def _unknown_names(pair: Sequence[str]) -> Iterator[Problem]:
    for layer in pair[:2]:
        if layer != FINAL_NORM and not LAYER_NAME.fullmatch(layer):
            cure = f"write {FINAL_NORM} or decoder.layers.N.NAME, N from 0"
            yield pair_problem(pair, f"no layer is called {show(layer)}", cure)
    for loss in pair[2:]:
        if loss not in HIDDEN_KINDS:
            yield pair_problem(pair, f"no loss is called {show(loss)}", f"write one of {', '.join(HIDDEN_KINDS)}")
