"""Checks that the student, the teacher and the losses between them are compatible."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_rules import contradictions, pair_problem
from megatron_kd.config.problem import Problem
from megatron_kd.config.stages import LAYER_NAME, NOT_HIDDEN, place_of

_BY_MODELOPT = "with loss_balancer=modelopt, ModelOpt captures {}"


def distillation_problems(cfg: ConfigContainer) -> Iterator[Problem]:
    """Problems between student and teacher; none when there is no teacher."""
    model = cfg.distillation
    if model is None:
        return
    if model.seq_length != model.teacher.seq_length:
        cure = f"set model.teacher.seq_length={model.seq_length}"
        yield Problem.of(cfg, "model.seq_length model.teacher.seq_length", "both models read the same tokens", cure)
    yield from contradictions(model.kd_config)
    for pair in model.kd_config.intermediate_layer_pairs:
        if len(pair) in (2, 3):
            yield from _layers(model, pair)
            yield from _captured_by_modelopt(model, pair)


def _layers(model: GPTDistillationProvider, pair: list[str]) -> Iterator[Problem]:
    same_width = model.hidden_size == model.teacher.hidden_size
    yield from _layer(pair, "model", model, pair[0], same_width=same_width)
    yield from _layer(pair, "model.teacher", model.teacher, pair[1], same_width=True)


def _layer(pair: list[str], name: str, model: GPTModelProvider, layer: str, *, same_width: bool) -> Iterator[Problem]:
    match = LAYER_NAME.fullmatch(layer)
    if match is None:
        return
    if int(match[1]) >= model.num_layers:
        why = f"{layer} does not exist, since {name} has layers 0 to {model.num_layers - 1}"
        yield pair_problem(pair, why, "pair one of these")
    if match[2].split(".")[-1] in NOT_HIDDEN and (model.tensor_model_parallel_size > 1 or not same_width):
        why = f"the output of {layer} is split over tensor-parallel ranks and is not {name}.hidden_size wide"
        yield pair_problem(pair, why, "pair a norm instead, such as decoder.layers.N.input_layernorm")


def _captured_by_modelopt(model: GPTDistillationProvider, pair: list[str]) -> Iterator[Problem]:
    if model.kd_config.loss_balancer != "modelopt":
        return
    cure = "set model.kd_config.loss_balancer=global or static"
    if not _is_on_last_part(model, pair[0]):
        yield pair_problem(pair, _BY_MODELOPT.format("layers of the last pipeline stage only"), cure)
    if model.recompute_granularity == "full" and _is_recomputed(model, pair[0]):
        yield pair_problem(pair, _BY_MODELOPT.format("no layer of a fully recomputed block"), cure)


def _is_on_last_part(model: GPTModelProvider, layer: str) -> bool:
    """Whether `layer` is where the output layer is; also true if it does not exist, which another check reports."""
    stages, chunks = max(model.pipeline_model_parallel_size, 1), model.chunks
    place = place_of(layer, num_layers=model.num_layers, stages=stages, chunks=chunks)
    return place is None or (place.stage, place.chunk) == (stages - 1, chunks - 1)


def _is_recomputed(model: GPTModelProvider, layer: str) -> bool:
    match = LAYER_NAME.fullmatch(layer)
    if match is None:
        return False
    if model.recompute_method != "block":
        return True
    stage_layers = max(model.num_layers // max(model.pipeline_model_parallel_size, 1), 1)
    return int(match[1]) % stage_layers < (model.recompute_num_layers or 0)
