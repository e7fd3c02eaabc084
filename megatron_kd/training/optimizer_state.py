"""Loading optimizer state into a fresh optimizer, which megatron-core 0.16.1 does for fused Adams only."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_STATE = {"params", "step"}  # of a parameter group; the rest are settings


def create_state(optimizer: MegatronOptimizer) -> None:
    """Give a fresh optimizer the state tensors it would have after its first step, for a load to fill."""
    for part in _parts(optimizer):
        if part.init_state_fn is None:  # megatron-core has none for SGD, and calls it all the same
            part.init_state_fn = _create_momentum
        part.init_state_fn(part.optimizer, part.config)
        if isinstance(part.optimizer, torch.optim.AdamW):  # the fused ones count steps once, not a parameter
            for state in part.optimizer.state.values():
                state.setdefault("step", torch.zeros(()))


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load what `sharded_state_dict` of an optimizer described, at any parallel layout.

    The settings of its parameter groups (learning rates, betas, ...) stay those of the configuration.

    Args:
        optimizer: one that `create_state` was called on.
        state: as loaded by megatron-core.
    """
    settings = [{key: group[key] for key in group.keys() - _STATE} for group in optimizer.param_groups]
    _load_state(optimizer, state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    parts = _parts(optimizer)
    torchs_own = isinstance(parts[0].optimizer, torch.optim.AdamW)
    if len(parts) > 1 or not (torchs_own and isinstance(parts[0], DistributedOptimizer)):
        optimizer.load_state_dict(state)
        return
    # With torch's AdamW, the distributed optimizer looks for "step" among the sharded tensors, where it is not,
    # and then gives all parameters one and the same step tensor, which each would count up.
    parameters = state.pop("param_state")
    parts[0].load_state_dict(state)
    states = list(parts[0].optimizer.state.values())
    steps = [state.pop("step") for state in states]
    parts[0].load_parameter_state_from_fully_reshardable(parameters)
    for inner, step in zip(states, steps, strict=True):
        inner["step"] = step.clone()


def _create_momentum(optimizer: torch.optim.Optimizer, config: Any) -> None:
    """The state of torch's SGD."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))
