"""All strategies, and which of them a run may take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.placement.balanced import Balanced
from megatron_kd.placement.colocated import Colocated
from megatron_kd.placement.cpu import Cpu
from megatron_kd.placement.gpu0 import Gpu0
from megatron_kd.placement.strategy import Strategy

# The fastest first, where all of them fit: fewer things that have to work together come first.
STRATEGIES: tuple[Strategy, ...] = (Colocated(), Balanced(), Gpu0(), Cpu())

AUTO = "auto"  # the fastest that fits
CHOICES = (AUTO, *(strategy.name for strategy in STRATEGIES))  # what users may write
_FIELD = "model.teacher_device_strategy"


def strategy_named(name: str) -> Strategy:
    """The strategy that users call `name`."""
    return {strategy.name: strategy for strategy in STRATEGIES}[name]


def asked_strategy(model: GPTDistillationProvider) -> Strategy | None:
    """The strategy that the configuration names; None under `auto`."""
    return None if model.teacher_device_strategy == AUTO else strategy_named(model.teacher_device_strategy)


def placement_problems(cfg: ConfigContainer, world_size: int | None) -> Iterator[Problem]:
    """Why the strategy that is asked for cannot support this run, and which can; none when there is no teacher.

    With `auto`, only what no strategy supports is a problem.
    """
    model = cfg.distillation
    if model is None:
        return
    found = {strategy.name: list(strategy.problems(cfg, model, world_size)) for strategy in STRATEGIES}
    able = [name for name, problems in found.items() if not problems]
    if asked_strategy(model) is not None:
        cure = f"; or set {_FIELD}={' or '.join(able)}" if able else ""
        yield from (replace(p, cure=p.cure + cure) for p in found[model.teacher_device_strategy])
    elif not able:
        auto = Setting(_FIELD, AUTO)
        yield from (replace(p, fields=(auto, *p.fields)) for p in dict.fromkeys(chain(*found.values())))
