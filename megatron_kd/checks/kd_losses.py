"""What student, teacher and their losses must have in common."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import shared_vocab_size
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.kd_rules import PAIRS, contradictions
from megatron_kd.config.problem import line
from megatron_kd.config.stages import LAYER_NAME, NOT_HIDDEN, place_of
from megatron_kd.config.values import show

_BY_MODELOPT = "with loss_balancer=modelopt, ModelOpt captures {}; set model.kd_config.loss_balancer=global or static"


def distillation_problems(cfg: ConfigContainer, tokenizer_vocab_size: int | None = None) -> Iterator[str]:
    """Problems between student and teacher; none when there is no teacher."""
    model = cfg.distillation
    if model is None:
        return
    if model.seq_length != model.teacher.seq_length:
        cure = f"set model.teacher.seq_length={model.seq_length}"
        yield line(cfg, "model.seq_length model.teacher.seq_length", f"both models read the same tokens; {cure}")
    yield from contradictions(model.kd_config)
    yield from _shared_ids(cfg, model.kd_config, tokenizer_vocab_size)
    yield from _layer_places(model)


def _shared_ids(
    cfg: ConfigContainer, kd: ModelOptDistillConfig, tokenizer_vocab_size: int | None = None
) -> Iterator[str]:
    """The models are compared over the ids that both have."""
    shared = shared_vocab_size(cfg, tokenizer_vocab_size)
    if shared is not None and kd.logit_kl_topk is not None and kd.logit_kl_topk > shared > 0:
        why = f"student and teacher share {shared} ids; set it to at most that, or to null to compare all of them"
        yield line(cfg, "model.kd_config.logit_kl_topk", why)


def _layer_places(model: GPTDistillationProvider) -> Iterator[str]:
    same_width = model.hidden_size == model.teacher.hidden_size
    by_modelopt = model.kd_config.loss_balancer == "modelopt"
    for pair in model.kd_config.intermediate_layer_pairs:
        if len(pair) not in (2, 3):
            continue
        yield from _layer_place(pair, "model", model, pair[0], same_width=same_width)
        yield from _layer_place(pair, "model.teacher", model.teacher, pair[1], same_width=True)
        if by_modelopt and not _is_on_last_part(model, pair[0]):
            yield f"{PAIRS}={show(pair)}: {_BY_MODELOPT.format('layers of the last pipeline stage only')}"
        if by_modelopt and model.recompute_granularity == "full" and _is_recomputed(model, pair[0]):
            yield f"{PAIRS}={show(pair)}: {_BY_MODELOPT.format('no layer of a fully recomputed block')}"


def _is_on_last_part(model: GPTModelProvider, layer: str) -> bool:
    """Whether `layer` is where the output layer is; true also of one that does not exist, which is said elsewhere."""
    stages, chunks = max(model.pipeline_model_parallel_size, 1), model.chunks
    place = place_of(layer, num_layers=model.num_layers, stages=stages, chunks=chunks)
    return place is None or (place.stage, place.chunk) == (stages - 1, chunks - 1)


def _layer_place(pair: list[str], name: str, model: GPTModelProvider, layer: str, *, same_width: bool) -> Iterator[str]:
    match = LAYER_NAME.fullmatch(layer)
    if match is None:
        return
    if int(match[1]) >= model.num_layers:
        yield f"{PAIRS}={show(pair)}: {layer} does not exist; {name} has layers 0 to {model.num_layers - 1}"
    if match[2].split(".")[-1] in NOT_HIDDEN and (model.tensor_model_parallel_size > 1 or not same_width):
        yield (
            f"{PAIRS}={show(pair)}: the output of {layer} is split over tensor-parallel ranks and is not "
            f"{name}.hidden_size wide; pair a norm instead, such as decoder.layers.N.input_layernorm"
        )


def _is_recomputed(model: GPTModelProvider, layer: str) -> bool:
    match = LAYER_NAME.fullmatch(layer)
    if match is None:
        return False
    if model.recompute_method != "block":
        return True
    stage_layers = max(model.num_layers // max(model.pipeline_model_parallel_size, 1), 1)
    return int(match[1]) % stage_layers < (model.recompute_num_layers or 0)
