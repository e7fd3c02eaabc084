"""Rules for the settings of the distillation losses that hold whatever the models are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_kd.config.rules import NOT_NEGATIVE, POSITIVE, Rule
from megatron_kd.config.stages import FINAL_NORM, LAYER_NAME
from megatron_kd.config.values import show
from megatron_kd.losses.kinds import HIDDEN_KINDS, PARAMETERS

if TYPE_CHECKING:
    from megatron_kd.config.kd_config import ModelOptDistillConfig

PAIRS = "model.kd_config.intermediate_layer_pairs"

KD_RULES: dict[str, Rule] = {
    "kd_loss_scale": POSITIVE,
    "logit_kl_temperature": POSITIVE,
    "logit_kl_topk": POSITIVE,
    "logits_loss_weight": NOT_NEGATIVE,
    "intermediate_loss_weight": NOT_NEGATIVE,
    **{f"logits_loss_{name}": Rule(parameter.holds, parameter.words) for name, parameter in PARAMETERS.items()},
}


def kd_config_problems(kd: ModelOptDistillConfig) -> Iterator[str]:
    """Everything impossible in the settings of the losses on their own."""
    for name, rule in KD_RULES.items():
        value = getattr(kd, name)
        if value is not None and not rule.holds(value):
            yield f"model.kd_config.{name}={show(value)}: {rule.words}"
    yield from contradictions(kd)


def contradictions(kd: ModelOptDistillConfig) -> Iterator[str]:
    """Names of layers and losses that do not exist, and settings that exclude each other."""
    yield from _layer_names(kd)
    yield from _logits_form(kd)


def _logits_form(kd: ModelOptDistillConfig) -> Iterator[str]:
    topk = f"model.kd_config.logit_kl_topk={show(kd.logit_kl_topk)}"
    if kd.logit_kl_topk is not None and kd.logits_form == "fused":
        yield f"{topk}, model.kd_config.logits_form=fused: the top k are picked among logits; set logits_form=auto"
    if kd.logit_kl_topk is not None and kd.logits_loss_kind != "forward_kl":
        yield (
            f"{topk}, model.kd_config.logits_loss_kind={kd.logits_loss_kind}: the top-k loss is a forward KL; "
            "set model.kd_config.logits_loss_kind=forward_kl"
        )
    if kd.logits_form == "fused" and kd.loss_balancer == "modelopt":
        yield (
            "model.kd_config.logits_form=fused, model.kd_config.loss_balancer=modelopt: the fused loss must know its "
            "weights before the forward pass, and ModelOpt's balancer makes them after it; set "
            "model.kd_config.logits_form=auto, or loss_balancer=global"
        )


def _layer_names(kd: ModelOptDistillConfig) -> Iterator[str]:
    if kd.logit_layers != ["output_layer", "output_layer"]:
        yield (
            f"model.kd_config.logit_layers={show(kd.logit_layers)}: the logits of a GPT model come from its "
            "output_layer; write [output_layer, output_layer]"
        )
    for index, pair in enumerate(kd.intermediate_layer_pairs):
        if len(pair) not in (2, 3):
            yield f"{PAIRS}={show(pair)}: must be a pair, [student layer, teacher layer], or end in a loss's name"
        elif pair in kd.intermediate_layer_pairs[:index]:
            yield f"{PAIRS}={show(pair)}: is listed twice; leave one out"
        else:
            yield from (_bad_name(name) for name in pair[:2] if name != FINAL_NORM and not LAYER_NAME.fullmatch(name))
            yield from (
                f"{PAIRS}={show(pair)}: no loss is called {show(name)}; write one of {', '.join(HIDDEN_KINDS)}"
                for name in pair[2:]
                if name not in HIDDEN_KINDS
            )


def _bad_name(name: str) -> str:
    return f"{PAIRS}: no layer is called {show(name)}; write {FINAL_NORM} or decoder.layers.N.NAME, N from 0"
