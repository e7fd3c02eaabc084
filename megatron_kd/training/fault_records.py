"""Steps with NaN or Inf: the samples they came from, and their lines in `run_dir/faults.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_kd.errors import NumericalFault
from megatron_kd.messages import going_on_without
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.together import from_all
from megatron_kd.training.run_state import Run

FAULTS_FILE = "faults.jsonl"


@dataclass(frozen=True)
class FailedAttempt:
    """A first attempt at a step that failed; equal on every rank.

    Attributes:
        step: the step that was not taken.
        what: the message of the error.
        samples: the ids of the samples that the fault came from, by rank.
    """

    step: int
    what: str
    samples: dict[int, list[int]]


def failed_attempt(run: Run, batch: Sequence[MicroBatch], fault: NumericalFault) -> FailedAttempt:
    """Describe the attempt that `fault` ended. Every rank must call this."""
    return FailedAttempt(run.step + 1, str(fault), _samples(fault.sample_ids, batch))


def record_transient_fault(run: Run, first: FailedAttempt) -> None:
    """Record that the second attempt succeeded."""
    _record(run, first, "transient", first.what)


def persistent_fault(run: Run, first: FailedAttempt, fault: NumericalFault) -> NumericalFault:
    """Record that the second attempt failed with `fault`, and return the error that ends the run."""
    _record(run, first, "persistent", str(fault))
    return NumericalFault(f"{fault}; as on the first attempt: {_where(first, run)}")


def _samples(faulty: list[int], batch: Sequence[MicroBatch]) -> dict[int, list[int]]:
    """The ids of the samples in the micro-batches in which a rank found NaN or Inf, by rank.

    All samples of the step if its losses were finite and only what follows from them was not.
    """
    everyone = from_all(faulty)
    found = {rank: ids for rank, ids in enumerate(everyone) if ids}
    if found:
        return found
    return dict(enumerate(from_all([i for micro_batch in batch for i in micro_batch.sample_ids])))


def _where(first: FailedAttempt, run: Run) -> str:
    ids = sorted({i for found in first.samples.values() for i in found})
    ranks = ", ".join(map(str, first.samples))
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    return f"samples {shown} on rank {ranks}; {Path(run.cfg.logger.run_dir) / FAULTS_FILE} has it all"


def _record(run: Run, first: FailedAttempt, outcome: Literal["transient", "persistent"], what: str) -> None:
    if run.layout.rank != 0:
        return
    path = Path(run.cfg.logger.run_dir) / FAULTS_FILE
    line = json.dumps({"step": first.step, "outcome": outcome, "what": what, "sample_ids_by_rank": first.samples})
    with going_on_without(path, line), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
