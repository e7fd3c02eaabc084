"""One global batch through megatron-core's schedule, as a training step and an evaluation need it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_kd.distillation.report import REPORTED, LossResult, StepSums
from megatron_kd.losses.faults import FAULTS, raise_faults
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.modelopt import mtd_megatron
from megatron_kd.runtime.signals import StopSignals
from megatron_kd.teachers.protocol import Targets
from megatron_kd.teachers.transport import HAND_OVER
from megatron_kd.training.run_state import ForwardRun


@dataclass(frozen=True)
class Totals:
    """The sums over all ranks of a global batch, equal on every rank.

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
    sums = StepSums(run.layout.device)
    results = schedule(run, next_batch(run, micro_batches), sums, forward_only=True)()
    return add_up(run, results, sums, stop, f"evaluation after step {run.step}: ")


def schedule(
    run: ForwardRun, micro_batches: Sequence[MicroBatch], sums: StepSums, *, forward_only: bool
) -> Callable[[], list[Tensor]]:
    """megatron-core's schedule over one global batch, ready to be called once.

    The teacher delivers its hidden states first. The schedule is returned rather than called: a step calls it itself,
    so that only four frames of ours lead from a recipe to the model.

    Args:
        run: of this rank.
        micro_batches: those of this rank, on any device.
        sums: new ones, to which the forwards add.
        forward_only: leave out the backward pass.

    Returns:
        A function that runs the schedule and returns the reported sums of each micro-batch, [len(REPORTED)]; on the
        last stage only.
    """
    feeds = _feeds(run, [micro_batch.to(run.layout.device) for micro_batch in micro_batches])
    shape = {"seq_length": run.cfg.model.seq_length, "micro_batch_size": run.cfg.train.micro_batch_size}
    interleaved = run.layout.chunks > 1
    return partial(
        get_forward_backward_func(run.layout.pp.size, run.layout.chunks if interleaved else None),
        forward_step_func=partial(_forward_step, run, sums),
        data_iterator=feeds if interleaved else feeds[0],
        model=run.chunks,
        num_microbatches=len(micro_batches),
        forward_only=forward_only,
        adjust_tensor_shapes_fn=_joint_shapes(run, shape),
        **shape,
    )


def add_up(run: ForwardRun, results: Sequence[Tensor], sums: StepSums, stop: StopSignals | None, where: str) -> Totals:
    """Sum the micro-batches of all data-parallel ranks; one rank of each last stage contributes.

    The same all-reduce carries the faults that the losses noted, so that all ranks raise together and none waits for
    a rank that is gone, and whether a rank was asked to stop, so that all stop after the same step. It adds no
    synchronisation with the device to the one for the losses.

    Args:
        run: of this rank.
        results: of the schedule, [len(REPORTED)] each.
        sums: that its forwards added to.
        stop: the signals of this rank; None if it cannot be asked to stop.
        where: the beginning of an error message.

    Raises:
        NumericalFault: the logits are non-finite on some rank; on every rank, and it names the model.
        InputError: a label is outside the vocabulary; on every rank.
    """
    run.doing.enter("adding up the losses")
    reported = sums.reported()
    if run.layout.is_last_stage and run.layout.tp.rank == 0:
        reported += torch.stack(list(results)).sum(0)
    asked = stop is not None and stop.received is not None
    found = torch.cat((reported, sums.faults_met(), reported.new_full((1,), asked)))
    torch.distributed.all_reduce(found)
    *summed, asked_anywhere = found.tolist()
    values = dict(zip(REPORTED + FAULTS, summed, strict=True))
    met = [fault for fault in FAULTS if values.pop(fault)]
    raise_faults(met, where, sums.faulty_samples() if met else ())
    return Totals(values, stop_requested=asked_anywhere > 0)


def means_of(sums: dict[str, float]) -> tuple[dict[str, float], int]:
    """From sums over unmasked tokens to means over them, and their number."""
    tokens = int(sums["tokens"])
    return {name: value / max(tokens, 1) for name, value in sums.items() if name != "tokens"}, tokens


def _feeds(run: ForwardRun, micro_batches: list[MicroBatch]) -> list[Iterator[tuple[MicroBatch, Targets]]]:
    """For each chunk of the student: the batch's micro-batches, each with the teacher's targets."""
    if run.teacher is None:
        targets = [Targets(micro_batch.sample_ids) for micro_batch in micro_batches]
    else:
        run.doing.enter(HAND_OVER)
        targets = run.teacher.deliver(micro_batches)
    return [_taken(deque(zip(micro_batches, targets, strict=True))) for _ in run.chunks]


def _taken(items: deque[tuple[MicroBatch, Targets]]) -> Iterator[tuple[MicroBatch, Targets]]:
    while items:  # free targets once they are read: those of a whole batch take much memory
        yield items.popleft()


def _forward_step(
    run: ForwardRun, sums: StepSums, feed: Iterator[tuple[MicroBatch, Targets]], model: Any
) -> tuple[Tensor | LossResult, Callable[[LossResult], LossResult]]:
    micro_batch, targets = next(feed)
    run.doing.enter("forward and backward")
    with run.objective.forward(micro_batch, targets, sums):
        output = model(micro_batch.tokens, micro_batch.position_ids, None, packed_seq_params=micro_batch.segments)
    return output, _loss


def _loss(output: LossResult) -> LossResult:
    return output  # the last stage's model has computed it


def _joint_shapes(run: ForwardRun, shape: dict[str, int]) -> Any:
    # Under pipeline parallelism, ModelOpt sends the hidden states of student and teacher concatenated.
    if run.teacher is None or not run.teacher.in_student_pipeline or run.layout.pp.size == 1:
        return None
    return mtd_megatron.get_tensor_shapes_adjust_fn_for_distillation(
        run.chunks, decoder_seq_length=shape["seq_length"], **shape
    )
