"""A teacher without a run around it, on a rank."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.placement.registry import strategy_named
from megatron_kd.runtime.layout import Layout, create_layout
from megatron_kd.teachers.build_teacher import build_teacher
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Teacher

CPU = torch.device("cpu")


def student_layout(cfg: ConfigContainer) -> Layout:
    """Set up the process groups of `cfg`'s student."""
    return create_layout(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
        device=CPU,
    )


def built_teacher(cfg: ConfigContainer, layout: Layout) -> Teacher:
    """The teacher of `cfg`, as a run builds it."""
    strategy = strategy_named(cfg.model.teacher_device_strategy)
    return build_teacher(cfg, cfg.model, derived(cfg, dist.get_world_size()), layout, strategy, InFlight())
