"""One training step, and the forward pass evaluation shares with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import modelopt.torch.distill as mtd
import modelopt.torch.distill.plugins.megatron as mtd_megatron
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_kd.distillation.objective import REPORTED, LossResult
from megatron_kd.errors import NumericalFault
from megatron_kd.training.run import Run

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """What one step reports, equal on every rank: means over the unmasked tokens of the global batch."""

    means: dict[str, float]
    tokens: int
    grad_norm: float
    lr: float


def train_step(run: Run, micro_batches: Iterator[Batch]) -> StepReport:
    """Forward, backward and update on one global batch.

    Args:
        run: changed in place: weights, optimizer, schedule, balancer, `step`.
        micro_batches: yields this rank's micro-batches of the step.

    Raises:
        NumericalFault: loss or gradient norm is not finite.
    """
    run.model.zero_grad_buffer()
    run.optimizer.zero_grad()
    means, tokens = forward_backward(run, micro_batches, run.derived.num_microbatches, forward_only=False)
    if not math.isfinite(means["loss"]):
        raise NumericalFault(f"step {run.step + 1}: the loss is {means['loss']}; the weights were not updated")
    lr = run.optimizer.param_groups[0]["lr"]
    _, grad_norm, _ = run.optimizer.step()
    run.scheduler.step(increment=1)
    run.step += 1
    report = StepReport(means, tokens, float(grad_norm), float(lr))
    if not math.isfinite(report.grad_norm):
        raise NumericalFault(f"step {run.step}: the gradient norm is {report.grad_norm}")
    run.objective.observe(means)
    return report


def forward_backward(
    run: Run, micro_batches: Iterator[Batch], num_microbatches: int, *, forward_only: bool
) -> tuple[dict[str, float], int]:
    """Run megatron-core's schedule over the micro-batches.

    Returns:
        The means of `REPORTED` over all unmasked tokens of the global batch, and the number of those tokens.
    """
    shape = {"seq_length": run.cfg.model.seq_length, "micro_batch_size": run.cfg.train.micro_batch_size}
    results = get_forward_backward_func(pp_size=run.layout.pp.size)(
        forward_step_func=partial(_forward_step, run),
        data_iterator=micro_batches,
        model=[run.model],
        num_microbatches=num_microbatches,
        forward_only=forward_only,
        adjust_tensor_shapes_fn=_joint_shapes(run, shape),
        **shape,
    )
    return _means(results, run)


def _forward_step(
    run: Run, micro_batches: Iterator[Batch], model: Any
) -> tuple[Tensor, Callable[[Tensor], LossResult]]:
    batch = {name: value.to(run.layout.device, non_blocking=True) for name, value in next(micro_batches).items()}
    run.objective.begin(batch["loss_mask"])
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"], loss_mask=batch["loss_mask"])
    return output, partial(_loss, run, batch["loss_mask"])


def _loss(run: Run, loss_mask_BS: Tensor, output: Tensor) -> LossResult:
    return run.objective(output, loss_mask_BS)


def _joint_shapes(run: Run, shape: dict[str, int]) -> Any:
    # Under pipeline parallelism, ModelOpt sends the hidden states of student and teacher concatenated.
    if run.layout.pp.size == 1 or not isinstance(run.student, mtd.DistillationModel):
        return None
    return mtd_megatron.get_tensor_shapes_adjust_fn_for_distillation(
        [run.model], decoder_seq_length=shape["seq_length"], **shape
    )


def _means(results: list[Tensor], run: Run) -> tuple[dict[str, float], int]:
    """Add up the micro-batches of every data-parallel rank; only one rank of each last stage contributes."""
    sums = run.objective.take_stage_sums().to(run.layout.device)
    if run.layout.is_last_stage and run.layout.tp.rank == 0:
        sums += torch.stack(results).sum(0)
    torch.distributed.all_reduce(sums)
    values = dict(zip(REPORTED, sums.tolist(), strict=True))
    tokens = int(values.pop("tokens"))
    return {name: value / max(tokens, 1) for name, value in values.items()}, tokens
