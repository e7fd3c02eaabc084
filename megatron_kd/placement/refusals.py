"""Where the teacher is to live, and what each strategy can serve."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Literal

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import student_dtype
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.problem import divides, line
from megatron_kd.config.stages import NOT_HIDDEN, LayerPlace, place_of
from megatron_kd.config.values import show

Strategy = Literal["colocated", "balanced", "gpu0", "cpu"]
STRATEGIES: tuple[Strategy, ...] = ("colocated", "balanced", "gpu0", "cpu")  # the fastest first, where all of them fit

_STRATEGY = "model.teacher_device_strategy"
_PAIRS = "model.kd_config.intermediate_layer_pairs"
_LAYOUT = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel")


def placement_problems(cfg: ConfigContainer, world_size: int | None) -> Iterator[str]:
    """Why the strategy cannot serve this run, and which one can; none when there is no teacher.

    With `auto`, only what no strategy can serve is a problem.
    """
    model = cfg.distillation
    if model is None:
        return
    wanted = model.teacher_device_strategy
    found = {strategy: list(strategy_problems(cfg, strategy, world_size)) for strategy in STRATEGIES}
    serving = [strategy for strategy, problems in found.items() if not problems]
    if wanted == "auto":
        if not serving:
            yield from (f"{_STRATEGY}=auto: {problem}" for problem in dict.fromkeys(chain(*found.values())))
        return
    cure = f"; or set {_STRATEGY}={' or '.join(serving)}" if serving else ""
    yield from (problem + cure for problem in found[wanted])


def serving_strategies(cfg: ConfigContainer, world_size: int) -> list[str]:
    """The strategies that can serve a run with a teacher, whatever memory they take."""
    return [strategy for strategy in STRATEGIES if not any(strategy_problems(cfg, strategy, world_size))]


def strategy_problems(cfg: ConfigContainer, strategy: str, world_size: int | None) -> Iterator[str]:
    """What `strategy` cannot serve."""
    model = cfg.distillation
    assert model is not None
    if strategy == "colocated":
        yield from _colocated(cfg, model)
        return
    if model.teacher.virtual_pipeline_model_parallel_size is not None:
        name = "model.teacher.virtual_pipeline_model_parallel_size"
        yield line(cfg, name, f"a teacher runs forward only, where chunks gain nothing; set {name}=null")
    yield from _no_hidden_states(model)
    if strategy == "balanced":
        yield from _balanced(cfg, model.teacher, world_size)
    else:
        yield from _one_rank(cfg, strategy)
    if strategy == "gpu0" and world_size is not None and model.teacher_rank >= world_size:
        yield line(cfg, "model.teacher_rank", f"there are {world_size} ranks; choose one of 0 to {world_size - 1}")


def _colocated(cfg: ConfigContainer, model: GPTDistillationProvider) -> Iterator[str]:
    for name in _LAYOUT:
        if getattr(model, name) != getattr(model.teacher, name):
            cure = f"set model.teacher.{name}={show(getattr(model, name))}"
            why = f"must be equal for a colocated teacher, which shares the student's layout; {cure}"
            yield line(cfg, f"model.{name} model.teacher.{name}", why)
    for name in ("model", "model.teacher"):
        provider = model if name == "model" else model.teacher
        if provider.virtual_pipeline_model_parallel_size is not None:
            field = f"{name}.virtual_pipeline_model_parallel_size"
            why = f"ModelOpt's pipeline mechanism cannot serve several model chunks a stage; set {field}=null"
            yield line(cfg, field, why)
    if model.pipeline_model_parallel_size > 1 and model.teacher_dtype not in (None, student_dtype(cfg)):
        why = (
            "in one pipeline the hidden states of both models travel concatenated, so in one precision; set "
            "model.teacher_dtype=null, or model.pipeline_model_parallel_size=1 for both models"
        )
        yield line(cfg, "model.teacher_dtype mixed_precision.precision model.pipeline_model_parallel_size", why)
    if model.teacher_micro_batch_size not in (None, cfg.train.micro_batch_size):
        why = "a colocated teacher reads the student's micro-batches; set model.teacher_micro_batch_size=null"
        yield line(cfg, "model.teacher_micro_batch_size train.micro_batch_size", why)
    if model.pipeline_model_parallel_size == model.teacher.pipeline_model_parallel_size:
        yield from _pairs_on_two_stages(model)


def _pairs_on_two_stages(model: GPTDistillationProvider) -> Iterator[str]:
    for pair in model.kd_config.intermediate_layer_pairs:
        if len(pair) not in (2, 3):
            continue
        places = _place(model, pair[0]), _place(model.teacher, pair[1])
        if places[0] is not None and places[1] is not None and places[0].stage != places[1].stage:
            yield (
                f"{_PAIRS}={show(pair)}: the student's layer is on pipeline stage {places[0].stage} and the teacher's "
                f"on {places[1].stage}, between which hidden states of a colocated teacher do not travel; pair layers "
                "of one stage"
            )


def _place(model: GPTModelProvider, layer: str) -> LayerPlace | None:
    return place_of(layer, num_layers=model.num_layers, stages=max(model.pipeline_model_parallel_size, 1))


def _no_hidden_states(model: GPTDistillationProvider) -> Iterator[str]:
    for pair in model.kd_config.intermediate_layer_pairs:
        for layer in pair[:2]:
            if layer.split(".")[-1] in NOT_HIDDEN:
                yield (
                    f"{_PAIRS}: the output of {layer} is no hidden state, and only hidden states travel from a teacher "
                    "elsewhere; pair a norm instead, such as decoder.layers.N.input_layernorm"
                )


def _balanced(cfg: ConfigContainer, teacher: GPTModelProvider, world_size: int | None) -> Iterator[str]:
    copy = teacher.tensor_model_parallel_size * teacher.pipeline_model_parallel_size
    if world_size is not None and not divides(copy, world_size):
        why = f"one copy of the teacher takes {copy} ranks, of which {world_size} are not a multiple; change its sizes"
        yield line(cfg, "model.teacher.tensor_model_parallel_size model.teacher.pipeline_model_parallel_size", why)


def _one_rank(cfg: ConfigContainer, strategy: str) -> Iterator[str]:
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        field = f"model.teacher.{name}"
        if getattr(cfg.model.teacher, name) > 1:  # type: ignore[attr-defined]
            yield line(cfg, field, f"under {strategy} a rank computes the whole teacher; set {field}=1")
