"""Batches and rank counts that do not fit each other."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import data_parallel_size, global_batch_size, model_parallel_size
from megatron_kd.config.problem import Problem


def batch_problems(cfg: ConfigContainer, world_size: int | None) -> Iterator[Problem]:
    """Problems of the batch sizes; with an unknown number of ranks, those that hold for every number."""
    model_parallel = model_parallel_size(cfg)
    if min(model_parallel, global_batch_size(cfg, 1), cfg.train.micro_batch_size) < 1:
        return  # `ranges` reports it
    if world_size is not None and world_size % model_parallel:
        nearest = max(model_parallel, world_size // model_parallel * model_parallel)
        yield Problem.of(
            cfg,
            "model.tensor_model_parallel_size model.pipeline_model_parallel_size",
            f"one copy of the model takes {model_parallel} ranks, and {world_size} are not a multiple of that",
            f"start {nearest} or {nearest + model_parallel} (torchrun --nproc_per_node), or change the layout",
        )
        return
    data_parallel = data_parallel_size(cfg, world_size or model_parallel)
    yield from _global_batch(cfg, data_parallel, known=world_size is not None)


def _global_batch(cfg: ConfigContainer, data_parallel: int, known: bool) -> Iterator[Problem]:
    batch, micro = global_batch_size(cfg, data_parallel), cfg.train.micro_batch_size
    unit, parts = micro * data_parallel, f"train.micro_batch_size={micro}"
    if known:
        parts += f" x {data_parallel} data-parallel ranks"
    if any(model.chunks > 1 for _, model in cfg.models.by_field()):
        # megatron-core's interleaved schedule takes micro-batches in groups of one for each stage
        unit *= cfg.model.pipeline_model_parallel_size
        parts += f" x {cfg.model.pipeline_model_parallel_size} stages of the interleaved pipeline"
    if batch % unit:
        below = batch // unit * unit
        nearest = f"{below} or {below + unit}" if below else str(unit)
        why = f"must be a multiple of {unit} ({parts})"
        yield Problem.of(cfg, "train.global_batch_size", why, f"set train.global_batch_size={nearest}")
