"""The numbers of a test's configuration on some ranks."""

from __future__ import annotations

from typing import Any

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.placement.registry import strategy_named
from megatron_kd.placement.workload import Workload, workload
from megatron_kd.planning.scenario import Scenario


def workload_of(cfg: ConfigContainer, world_size: int, **options: Any) -> Workload:
    """`cfg` on `world_size` ranks; `options` are those of `workload`."""
    return workload(cfg, derived(cfg, world_size), **options)


def scenario(cfg: ConfigContainer, world_size: int, strategy: str, **options: Any) -> Scenario:
    """The same with its teacher under `strategy`."""
    return Scenario(workload_of(cfg, world_size, **options), strategy_named(strategy))
