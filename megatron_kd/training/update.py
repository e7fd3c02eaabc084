"""The optimizer's update, which is taken only where the gradient is finite."""

from __future__ import annotations

import math

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from megatron_kd.errors import NumericalFault


@torch.no_grad()
def update(optimizer: ChainedOptimizer) -> float:
    """Clip the gradients and apply them.

    megatron-core's own `step` clips by whatever norm it finds: one that is not finite would end up in every weight.

    Returns:
        The norm of the gradients before clipping, over all parameters of all ranks.

    Raises:
        NumericalFault: the norm is not finite, on every rank; weights and optimizer state are as before.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        raise NumericalFault(f"the gradient norm is {norm}: check the step's inputs, learning rate and precision")
    for part in optimizer.chained_optimizers:
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=norm)
    optimizer.step_with_ready_grads()
    return norm
