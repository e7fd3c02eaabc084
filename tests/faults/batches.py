"""Training data that is not what it was: what a run reads in each step, changed or noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tests.tiny import GLOBAL_BATCH


@contextmanager
def read_through(change: Callable[[int, Any], Any]) -> Iterator[None]:
    """On a rank: runs of `tiny_config` in the block train on what `change(step, micro_batch)` makes of their data.

    `RunData.training` is where all training data come from, on each rank its own.
    """
    from megatron_kd.training.run_data import RunData

    original = RunData.training

    def training(data: RunData, consumed_samples: int) -> Iterator[Any]:
        for micro_batch in original(data, consumed_samples):
            yield change(1 + micro_batch.sample_ids[0] // GLOBAL_BATCH, micro_batch)

    with mock.patch.object(RunData, "training", training):
        yield


@contextmanager
def sample_ids_read() -> Iterator[list[int]]:
    """On a rank: the ids of the samples that runs in the block read for training, in order."""
    from megatron_kd.training.run_data import RunData

    ids: list[int] = []
    original = RunData.training

    def training(data: RunData, consumed_samples: int) -> Iterator[Any]:
        for micro_batch in original(data, consumed_samples):
            ids.extend(micro_batch.sample_ids)
            yield micro_batch

    with mock.patch.object(RunData, "training", training):
        yield ids
