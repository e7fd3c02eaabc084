"""What student, teacher and their losses must have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import student_dtype
from megatron_kd.config.problems.lines import line
from megatron_kd.config.problems.ranges import KD_RULES
from megatron_kd.config.schema import show
from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.distillation.provider import GPTDistillationProvider
from megatron_kd.models.provider import GPTModelProvider

_PAIRS = "model.kd_config.intermediate_layer_pairs"
_FINAL_NORM = "decoder.final_layernorm"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(\w[\w.]*)")
# Outputs that are no hidden states: split over tensor-parallel ranks, and of another width.
_NOT_HIDDEN = ("linear_qkv", "linear_fc1", "core_attention", "q_layernorm", "k_layernorm")

# Settings in which teacher and student must agree, and why.
_SHARED = {
    "tensor_model_parallel_size": "for now the teacher shares the student's layout",
    "pipeline_model_parallel_size": "for now the teacher shares the student's layout",
    "context_parallel_size": "for now the teacher shares the student's layout",
    "sequence_parallel": "their hidden states are compared shard by shard",
    "seq_length": "both models read the same tokens",
}


def distillation_problems(cfg: ConfigContainer) -> Iterator[str]:
    """Problems between student and teacher; none when there is no teacher."""
    if not isinstance(cfg.model, GPTDistillationProvider):
        return
    yield from _shared_settings(cfg, cfg.model)
    yield from _layer_names(cfg.model.kd_config)
    yield from _logits_form(cfg.model.kd_config)
    yield from _layer_places(cfg.model)
    if cfg.model.pipeline_model_parallel_size > 1 and cfg.model.teacher_dtype not in (None, student_dtype(cfg)):
        yield line(
            cfg,
            "model.teacher_dtype mixed_precision.precision model.pipeline_model_parallel_size",
            "with pipeline parallelism the hidden states of both models travel concatenated, so in one precision; set "
            "model.teacher_dtype=null, or model.pipeline_model_parallel_size=1 for both models",
        )


def kd_config_problems(kd: ModelOptDistillConfig) -> list[str]:
    """What is impossible in the settings of the losses, whatever the models are."""
    ranges = [
        f"model.kd_config.{name}={show(getattr(kd, name))}: {rule.words}"
        for name, rule in KD_RULES.items()
        if not rule.holds(getattr(kd, name))
    ]
    return [*ranges, *_layer_names(kd), *_logits_form(kd)]


def _shared_settings(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[str]:
    for name, why in _SHARED.items():
        student, teacher = getattr(model, name), getattr(model.teacher, name)
        if student != teacher:
            cure = f"set model.teacher.{name}={show(student)}"
            yield line(cfg, f"model.{name} model.teacher.{name}", f"must be equal: {why}; {cure}")


def _logits_form(kd: ModelOptDistillConfig) -> Iterator[str]:
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
        if len(pair) != 2:
            yield f"{_PAIRS}={show(pair)}: must be a pair, [student layer, teacher layer]"
        elif pair in kd.intermediate_layer_pairs[:index]:
            yield f"{_PAIRS}={show(pair)}: is listed twice; leave one out"
        else:
            yield from (_bad_name(name) for name in pair if name != _FINAL_NORM and not _LAYER.fullmatch(name))


def _bad_name(name: str) -> str:
    return f"{_PAIRS}: no layer is called {show(name)}; write {_FINAL_NORM} or decoder.layers.N.NAME, N from 0"


def _layer_places(model: GPTDistillationProvider) -> Iterator[str]:
    for pair in model.kd_config.intermediate_layer_pairs:
        if len(pair) == 2:
            yield from _layer_place("model", model, pair[0], same_width=model.hidden_size == model.teacher.hidden_size)
            yield from _layer_place("model.teacher", model.teacher, pair[1], same_width=True)
            if (model.recompute_granularity == "full") and _is_recomputed(model, pair[0]):
                yield (
                    f"{_PAIRS}: student layer {pair[0]} lies in a fully recomputed block, where its output is not "
                    f"kept; pair {_FINAL_NORM} instead, or set model.recompute_granularity=selective (or null)"
                )


def _layer_place(name: str, model: GPTModelProvider, layer: str, same_width: bool) -> Iterator[str]:
    match = _LAYER.fullmatch(layer)
    if match is None:
        return
    index, stages = int(match[1]), model.pipeline_model_parallel_size
    first_of_last = model.num_layers - model.num_layers // max(stages, 1)
    if index >= model.num_layers:
        yield f"{_PAIRS}: {layer} does not exist; {name} has layers 0 to {model.num_layers - 1}"
    elif index < first_of_last:
        yield (
            f"{_PAIRS}: {layer} is not on the last pipeline stage, the only one with intermediate losses; with "
            f"{name}.pipeline_model_parallel_size={stages} use layers {first_of_last} to {model.num_layers - 1}"
        )
    if match[2].split(".")[-1] in _NOT_HIDDEN and (model.tensor_model_parallel_size > 1 or not same_width):
        yield (
            f"{_PAIRS}: the output of {layer} is split over tensor-parallel ranks and is not {name}.hidden_size wide; "
            "pair a norm instead, such as decoder.layers.N.input_layernorm"
        )


def _is_recomputed(model: GPTModelProvider, layer: str) -> bool:
    match = _LAYER.fullmatch(layer)
    if match is None:
        return False
    if model.recompute_method != "block":
        return True
    stage_layers = max(model.num_layers // max(model.pipeline_model_parallel_size, 1), 1)
    return int(match[1]) % stage_layers < (model.recompute_num_layers or 0)
