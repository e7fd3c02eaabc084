"""One training step, and the forward pass evaluation shares with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_kd.distillation.objective import REPORTED, LossResult
from megatron_kd.errors import NumericalFault
from megatron_kd.losses.faults import FAULTS, raise_faults
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.modelopt import mtd_megatron
from megatron_kd.teachers.transport import HAND_OVER
from megatron_kd.training.run_state import ForwardRun, Run
from megatron_kd.training.update import update


@dataclass(frozen=True)
class StepReport:
    """What one step reports, equal on every rank: means over the unmasked tokens of the global batch."""

    means: dict[str, float]
    tokens: int
    grad_norm: float
    lr: float


def take_step(run: Run, batches: list[MicroBatch]) -> StepReport:
    """Forward, backward and update on one global batch.

    Args:
        run: changed in place: weights, optimizer, schedule, balancer, `step`.
        batches: this rank's micro-batches of the step.

    Raises:
        NumericalFault: logits, loss or gradients are not finite; on every rank at the same step. `run` is as before,
            but for gradients and random state.
        InputError: a label that is no id, likewise.
    """
    for chunk in run.chunks:
        chunk.zero_grad_buffer()
    run.optimizer.zero_grad()
    means, tokens = means_of(forward_backward(run, iter(batches), forward_only=False))
    if not math.isfinite(means["loss"]):
        parts = ", ".join(f"{name}={value}" for name, value in means.items() if not math.isfinite(value))
        raise NumericalFault(
            f"step {run.step + 1} was not taken: the logits are finite, but not what follows from them: {parts}"
        )
    lr = run.optimizer.param_groups[0]["lr"]
    run.doing.enter("optimizer step")
    try:
        grad_norm = update(run.optimizer)
    except NumericalFault as fault:
        raise NumericalFault(f"step {run.step + 1} was not taken: {fault}") from None
    run.scheduler.step(increment=1)
    run.step += 1
    if tokens > 0:  # a batch in which none counts says nothing about the losses
        run.objective.observe(means)
    return StepReport(means, tokens, grad_norm, float(lr))


def forward_backward(run: ForwardRun, micro_batches: Iterator[MicroBatch], *, forward_only: bool) -> dict[str, float]:
    """Run megatron-core's schedule over one global batch.

    Returns:
        The sums of `REPORTED` over all unmasked tokens of the global batch, equal on every rank.

    Raises:
        NumericalFault: logits that are not finite on any rank, and whose; on every rank.
        InputError: a label that is no id, likewise.
    """
    shape = {"seq_length": run.cfg.model.seq_length, "micro_batch_size": run.cfg.train.micro_batch_size}
    batches = [batch.to(run.layout.device) for batch in islice(micro_batches, run.derived.num_microbatches)]
    if run.teacher is not None:
        run.doing.enter(HAND_OVER)
        run.teacher.deliver(batches)
    interleaved = run.layout.chunks > 1
    # Each chunk reads the step's micro-batches from the first.
    iterators = [iter(enumerate(batches)) for _ in run.chunks]
    results = get_forward_backward_func(run.layout.pp.size, run.layout.chunks if interleaved else None)(
        forward_step_func=partial(_forward_step, run),
        data_iterator=iterators if interleaved else iterators[0],
        model=run.chunks,
        num_microbatches=len(batches),
        forward_only=forward_only,
        adjust_tensor_shapes_fn=_joint_shapes(run, shape),
        **shape,
    )
    run.doing.enter("adding up the losses")
    where = f"evaluation after step {run.step}: " if forward_only else f"step {run.step + 1} was not taken: "
    return _sums(results, run, where)


def means_of(sums: dict[str, float]) -> tuple[dict[str, float], int]:
    """From sums over unmasked tokens to means over them, and their number."""
    tokens = int(sums["tokens"])
    return {name: value / max(tokens, 1) for name, value in sums.items() if name != "tokens"}, tokens


def _forward_step(
    run: ForwardRun, micro_batches: Iterator[tuple[int, MicroBatch]], model: Any
) -> tuple[Tensor, Callable[[Tensor], LossResult]]:
    index, batch = next(micro_batches)
    run.doing.enter("forward and backward")
    run.faults.begin(index)
    run.objective.begin(index, batch.loss_mask)
    output = model(
        batch.tokens,
        batch.position_ids,
        None,
        labels=batch.labels,
        loss_mask=batch.loss_mask,
        packed_seq_params=batch.segments,
    )
    return output, partial(_loss, run, batch.loss_mask)


def _loss(run: ForwardRun, loss_mask_BS: Tensor, output: Tensor) -> LossResult:
    return run.objective(output, loss_mask_BS)


def _joint_shapes(run: ForwardRun, shape: dict[str, int]) -> Any:
    # Under pipeline parallelism, ModelOpt sends the hidden states of student and teacher concatenated.
    if run.teacher is None or not run.teacher.in_student_pipeline:
        return None
    return mtd_megatron.get_tensor_shapes_adjust_fn_for_distillation(
        run.chunks, decoder_seq_length=shape["seq_length"], **shape
    )


def _sums(results: list[Tensor], run: ForwardRun, where: str) -> dict[str, float]:
    """Add up the micro-batches of every data-parallel rank; only one rank of each last stage contributes.

    What the losses found wrong travels along, so that all ranks raise it together and nobody waits for a rank that is
    gone; so does that a rank was asked to stop, for all to stop after the same step. It costs no wait for the device
    beyond that for the losses.
    """
    sums = run.objective.take_stage_sums().to(run.layout.device)
    if run.layout.is_last_stage and run.layout.tp.rank == 0:
        sums += torch.stack(results).sum(0)
    sums = torch.cat((sums, run.faults.take(), sums.new_full((1,), run.stop.received is not None)))
    torch.distributed.all_reduce(sums)
    *summed, asked_to_stop = sums.tolist()
    run.stopping = asked_to_stop > 0
    values = dict(zip(REPORTED + FAULTS, summed, strict=True))
    raise_faults([fault for fault in FAULTS if values.pop(fault)], where)
    return values
