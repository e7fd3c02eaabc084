"""Which strategy a run takes: the one asked for, if its models fit, or by `auto` the fastest that fits."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.errors import InputError
from megatron_kd.placement.registry import AUTO, asked_strategy
from megatron_kd.placement.strategy import Strategy
from megatron_kd.planning.estimate import Choice, Estimate, choose
from megatron_kd.planning.placement_table import memory_table
from megatron_kd.runtime.device_memory import measured_device_memory
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.together import from_all
from megatron_kd.teachers.teacher_layout import running_workload


@dataclass(frozen=True)
class ChosenStrategy:
    """The strategy of a run.

    Attributes:
        strategy: where the teacher is.
        why: `auto`'s reason, in a line; empty where the strategy was asked for.
        table: of the estimates that it compared.
    """

    strategy: Strategy
    why: str = ""
    table: str = ""


def choose_strategy(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout
) -> ChosenStrategy:
    """The strategy of this run, the same on every rank. Nothing is built or loaded for it.

    Every rank must call this: the one with the least memory decides.

    Raises:
        InputError: both models alone need more than a rank has, wherever the teacher is, or where it is asked to be.
    """
    memory = _device_memory(cfg, layout)
    choice = choose(running_workload(cfg, derived, layout), memory)
    asked = asked_strategy(model)
    if asked is not None:
        _refuse(choice, asked, memory, asked.name)
        return ChosenStrategy(asked)
    _refuse(choice, choice.strategy, memory, AUTO)
    needed = next(e.peak_bytes for e in choice.estimates if e.strategy is choice.strategy)
    share = f"about {needed / 1e9:.2g} of {memory / 1e9:.3g} GB per rank"
    why = f"auto takes {choice.strategy.name}: {choice.reason}; {share}; `megatron-kd plan` shows all"
    return ChosenStrategy(choice.strategy, why, memory_table(choice.estimates, memory))


def _device_memory(cfg: ConfigContainer, layout: Layout) -> float:
    if cfg.dist.device_memory_gb is not None:
        return cfg.dist.device_memory_gb * 1e9
    return float(min(from_all(measured_device_memory(), layout.world.group)))


def _refuse(choice: Choice, strategy: Strategy, memory: float, asked: str) -> None:
    """Only what is certain: weights, gradients and optimizer are counted exactly, the rest of a step is estimated."""
    needed = next(_state(estimate) for estimate in choice.estimates if estimate.strategy is strategy)
    if needed <= memory:
        return
    others = [e.strategy.name for e in choice.estimates if not e.cannot and e.fits(memory)]
    cure = f"set model.teacher_device_strategy={' or '.join(others)}"
    sizes = f"{needed / 1e9:.3f} GB on the largest rank, which has {memory / 1e9:.3f} GB"
    raise InputError(
        f"model.teacher_device_strategy={asked}: weights, gradients and optimizer take {sizes} "
        f"(dist.device_memory_gb); {cure if others else 'use more ranks, or lower precision'}"
    )


def _state(estimate: Estimate) -> int:
    return estimate.largest.state + estimate.shared_on_device
