"""`auto`: the fastest strategy that can serve the run and fits."""

from __future__ import annotations

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problems.placement import serving_strategies
from megatron_kd.distillation.provider import GPTDistillationProvider


def resolve_strategy(cfg: ConfigContainer, model: GPTDistillationProvider, world_size: int) -> str:
    """The strategy of a run: as asked for, or by `auto`."""
    if model.teacher_device_strategy != "auto":
        return model.teacher_device_strategy
    return serving_strategies(cfg, world_size)[0]
