"""Which strategy a run takes: the one asked for, if its models fit, or by `auto` the fastest that fits."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.errors import InputError
from megatron_kd.planning.estimate import Choice, Estimate, choose
from megatron_kd.planning.placement_table import memory_table
from megatron_kd.runtime.device_memory import measured_device_memory
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.together import from_all


@dataclass(frozen=True)
class ChosenStrategy:
    """The strategy, and what to tell the user about the choice: empty where there was none."""

    strategy: str
    lines: tuple[str, ...] = ()


def choose_strategy(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout
) -> ChosenStrategy:
    """The strategy of this run, the same on every rank. Nothing is built or loaded for it.

    Every rank must call this: the one with the least memory decides.

    Raises:
        InputError: both models alone need more than a rank has, wherever the teacher is, or where it is asked to be.
    """
    memory = _device_memory(cfg, layout)
    plan = choose(
        _with_vocabulary(cfg, model, derived),
        layout.world_size,
        memory,
        ranks_per_machine=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device="cuda" if layout.device.type == "cuda" else "cpu",
    )
    asked = model.teacher_device_strategy
    if asked == "auto":
        _refuse(plan, plan.strategy, memory, asked)
        table = memory_table(plan.estimates, memory)
        return ChosenStrategy(plan.strategy, (*table.splitlines(), f"auto takes {plan.strategy}: {plan.reason}"))
    _refuse(plan, asked, memory, asked)
    return ChosenStrategy(asked)


def _device_memory(cfg: ConfigContainer, layout: Layout) -> float:
    if cfg.dist.device_memory_gb is not None:
        return cfg.dist.device_memory_gb * 1e9
    return float(min(from_all(measured_device_memory(), layout.world.group)))


def _with_vocabulary(cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived) -> ConfigContainer:
    """A plan reads no tokenizer."""
    teacher = replace(model.teacher, vocab_size=derived.teacher_vocab_size)
    return replace(cfg, model=replace(model, vocab_size=derived.true_vocab_size, teacher=teacher))


def _refuse(plan: Choice, strategy: str, memory: float, asked: str) -> None:
    """Only what is certain: weights, gradients and optimizer are counted exactly, the rest of a step is estimated."""
    too_large = [e for e in plan.estimates if e.strategy == strategy and _state(e) > memory]
    if not too_large:
        return
    others = [e.strategy for e in plan.estimates if not e.cannot and e.fits(memory)]
    cure = f"set model.teacher_device_strategy={' or '.join(others)}"
    needed = f"{_state(too_large[0]) / 1e9:.3f} GB on the largest rank, which has {memory / 1e9:.3f} GB"
    raise InputError(
        f"model.teacher_device_strategy={asked}: weights, gradients and optimizer take {needed} "
        f"(dist.device_memory_gb); {cure if others else 'use more ranks, or lower precision'}"
    )


def _state(estimate: Estimate) -> int:
    return estimate.largest.state + estimate.shared_on_device
