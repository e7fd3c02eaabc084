"""One global batch through megatron-core's schedule: what a training step and an evaluation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_kd.distillation.objective import REPORTED, LossResult
from megatron_kd.losses.faults import FAULTS, raise_faults
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.modelopt import mtd_megatron
from megatron_kd.runtime.signals import StopSignals
from megatron_kd.teachers.transport import HAND_OVER
from megatron_kd.training.run_state import ForwardRun


@dataclass(frozen=True)
class Totals:
    """What all ranks have found in a global batch, equal on every rank.

    Attributes:
        sums: of `REPORTED`, over the unmasked tokens.
        stop_requested: a rank was asked to stop.
    """

    sums: dict[str, float]
    stop_requested: bool


def next_batch(run: ForwardRun, micro_batches: Iterator[MicroBatch]) -> list[MicroBatch]:
    """This rank's micro-batches of one global batch."""
    return list(islice(micro_batches, run.derived.num_microbatches))


def forward_batch(run: ForwardRun, micro_batches: Iterator[MicroBatch], stop: StopSignals | None = None) -> Totals:
    """Forward and losses, without gradients, of the next global batch.

    Raises:
        NumericalFault, InputError: see `add_up`.
    """
    results = schedule(run, next_batch(run, micro_batches), forward_only=True)()
    return add_up(run, results, stop, f"evaluation after step {run.step}: ")


def schedule(run: ForwardRun, micro_batches: Sequence[MicroBatch], *, forward_only: bool) -> Callable[[], list[Tensor]]:
    """megatron-core's schedule over one global batch, ready to be called once.

    The teacher has delivered its targets by then. Whoever calls the schedule is the frame above it: a step calls it
    itself, so that few frames of ours lie between a recipe and the model.

    Args:
        run: of this rank.
        micro_batches: this rank's, on any device.
        forward_only: without a backward.

    Returns:
        A function that returns the reported sums of each micro-batch, [len(REPORTED)]; on the last stage only.
    """
    batches = [batch.to(run.layout.device) for batch in micro_batches]
    if run.teacher is not None:
        run.doing.enter(HAND_OVER)
        run.teacher.deliver(batches)
    shape = {"seq_length": run.cfg.model.seq_length, "micro_batch_size": run.cfg.train.micro_batch_size}
    interleaved = run.layout.chunks > 1
    # Each chunk reads the step's micro-batches from the first.
    iterators = [iter(enumerate(batches)) for _ in run.chunks]
    return partial(
        get_forward_backward_func(run.layout.pp.size, run.layout.chunks if interleaved else None),
        forward_step_func=partial(_forward_step, run),
        data_iterator=iterators if interleaved else iterators[0],
        model=run.chunks,
        num_microbatches=len(batches),
        forward_only=forward_only,
        adjust_tensor_shapes_fn=_joint_shapes(run, shape),
        **shape,
    )


def add_up(run: ForwardRun, results: Sequence[Tensor], stop: StopSignals | None, where: str) -> Totals:
    """Add up the micro-batches of every data-parallel rank; only one rank of each last stage contributes.

    What the losses found wrong travels along, so that all ranks raise it together and nobody waits for a rank that is
    gone; so does that a rank was asked to stop, for all to stop after the same step. It costs no wait for the device
    beyond that for the losses.

    Args:
        run: of this rank.
        results: of the schedule, [len(REPORTED)] each.
        stop: the signals of this rank; None where it cannot be asked to stop.
        where: what an error begins with.

    Raises:
        NumericalFault: logits that are not finite on any rank, and whose; on every rank.
        InputError: a label that is no id, likewise.
    """
    run.doing.enter("adding up the losses")
    sums = run.objective.take_stage_sums().to(run.layout.device)
    if run.layout.is_last_stage and run.layout.tp.rank == 0:
        sums += torch.stack(list(results)).sum(0)
    asked = stop is not None and stop.received is not None
    sums = torch.cat((sums, run.faults.take(), sums.new_full((1,), asked)))
    torch.distributed.all_reduce(sums)
    *summed, asked_anywhere = sums.tolist()
    values = dict(zip(REPORTED + FAULTS, summed, strict=True))
    raise_faults([fault for fault in FAULTS if values.pop(fault)], where)
    return Totals(values, stop_requested=asked_anywhere > 0)


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
    if run.teacher is None or not run.teacher.in_student_pipeline or run.layout.pp.size == 1:
        return None
    return mtd_megatron.get_tensor_shapes_adjust_fn_for_distillation(
        run.chunks, decoder_seq_length=shape["seq_length"], **shape
    )
