"""A step that meets a number that is none is taken back and tried once more.

A second attempt that succeeds had a passing fault before it, of the hardware as a rule, and the run goes on: to the
last bit as if nothing had been. One that fails likewise tells of the data, the weights or the settings, and ends the
run. Both leave a line in `run_dir/faults.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from megatron_kd.errors import NumericalFault
from megatron_kd.messages import going_on_without
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.seeds import random_state, set_random_state
from megatron_kd.training.run_state import Run
from megatron_kd.training.step import StepReport, take_step

FAULTS_FILE = "faults.jsonl"


def train_step(run: Run, micro_batches: Iterator[MicroBatch]) -> StepReport:
    """Take a step on the next global batch, at the second attempt if need be.

    Args:
        run: changed in place by the attempt that succeeds, and by it alone.
        micro_batches: yields this rank's micro-batches of the step.

    Raises:
        NumericalFault: logits, loss or gradients are not finite, twice; on every rank at the same step.
        InputError: a label that is no id, likewise.
    """
    run.doing.enter("reading data", run.step + 1)
    batches = list(islice(micro_batches, run.derived.num_microbatches))
    before = random_state()
    try:
        return take_step(run, batches)
    except NumericalFault as fault:
        first = str(fault)
    samples = _samples(run, batches)
    set_random_state(before)
    try:
        report = take_step(run, batches)
    except NumericalFault as fault:
        _record(run, run.step + 1, "persistent", str(fault), samples)
        raise NumericalFault(f"{fault}; so it was at the first attempt: {_where(samples, run)}") from None
    _record(run, run.step, "transient", first, samples)
    return report


def _samples(run: Run, batches: list[MicroBatch]) -> dict[int, list[int]]:
    """The ids of the samples in the micro-batches whose numbers a rank found wrong, by rank; equal on every rank.

    All of the step's where the losses were right and only what followed from them was not.
    """
    culprits = run.faults.culprits()
    mine = [i for index in culprits for i in batches[index].sample_ids]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    found = {rank: ids for rank, ids in enumerate(everyone) if ids}
    if found:
        return found
    dist.all_gather_object(everyone, [i for batch in batches for i in batch.sample_ids])
    return dict(enumerate(everyone))


def _where(samples: dict[int, list[int]], run: Run) -> str:
    ids = sorted({i for found in samples.values() for i in found})
    ranks = ", ".join(map(str, samples))
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    return f"samples {shown} on rank {ranks}; {Path(run.cfg.logger.run_dir) / FAULTS_FILE} has it all"


def _record(
    run: Run, step: int, outcome: Literal["transient", "persistent"], what: str, samples: dict[int, list[int]]
) -> None:
    if run.layout.rank != 0:
        return
    path = Path(run.cfg.logger.run_dir) / FAULTS_FILE
    line = json.dumps({"step": step, "outcome": outcome, "what": what, "sample_ids_by_rank": samples})
    with going_on_without(path, line), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
