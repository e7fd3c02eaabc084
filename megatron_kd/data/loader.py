"""Data is a pure function of the samples read so far: what a rank reads depends on nothing else that happened before.

Step t of an attempt that begins with sample F reads samples F + t*G .. F + (t+1)*G-1, where G is the global batch size.
They are assigned by micro-batch, then data-parallel rank, then position in the micro-batch: with micro-batches of B
samples on D ranks, micro-batch m on rank r holds F + t*G + (m*D + r)*B + [0, B). Every choice of B and D covers the
same samples, in the same order, and a run that resumes with another G reads on where it was.

Legend: B samples of a micro-batch, S sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from megatron_kd.errors import InputError
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.models.packing import packed_segments

Sample = dict[str, Tensor]  # "tokens", "labels", "position_ids" and "loss_mask", [S] each


@dataclass(frozen=True)
class MicroBatchSampler:
    """The sample ids of each micro-batch of one data-parallel rank, from `start_step` to the end of the data.

    Steps are counted from the one that begins with `first_sample`.
    """

    num_samples: int
    start_step: int
    global_batch_size: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int
    first_sample: int = 0

    def __post_init__(self) -> None:
        portion = self.micro_batch_size * self.data_parallel_size
        if self.global_batch_size % portion:
            raise InputError(
                f"train.global_batch_size={self.global_batch_size} is not a multiple of train.micro_batch_size="
                f"{self.micro_batch_size} x {self.data_parallel_size} data-parallel ranks: make it one of {portion}"
            )

    @property
    def micro_batches_per_step(self) -> int:
        """How many micro-batches each rank reads in one step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def ids(self, step: int, micro_batch: int) -> range:
        """The B consecutive sample ids of one micro-batch of this rank."""
        place = micro_batch * self.data_parallel_size + self.data_parallel_rank
        first = self.first_sample + step * self.global_batch_size + place * self.micro_batch_size
        return range(first, first + self.micro_batch_size)

    @property
    def _steps(self) -> range:
        return range(self.start_step, (self.num_samples - self.first_sample) // self.global_batch_size)

    def __len__(self) -> int:
        return len(self._steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            for micro_batch in range(self.micro_batches_per_step):
                yield list(self.ids(step, micro_batch))


def micro_batches(
    dataset: Dataset,
    *,
    start_step: int,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    first_sample: int = 0,
    packed: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[MicroBatch]:
    """One rank's micro-batches, in order, from step `start_step` on; ends with the last whole global batch.

    Starting at step k yields exactly what is left after skipping k steps from the start, which is at `first_sample`.
    Batch sizes are in samples; `packed` says that a row holds several of them; `num_workers` processes read ahead.
    torch's global random state is left as it is.

    Raises:
        InputError: a global batch that does not divide into micro-batches of all ranks.
    """
    sampler = MicroBatchSampler(
        num_samples=len(dataset),
        start_step=start_step,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        first_sample=first_sample,
    )
    loader = DataLoader(
        _WithIds(dataset),
        batch_sampler=sampler,
        collate_fn=partial(_stack, packed),
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        # Without its own generator, a DataLoader draws a seed from the global one each time it is iterated,
        # and a resumed run would no longer draw the same numbers as an uninterrupted one.
        generator=torch.Generator(),
    )
    return iter(loader)


class _WithIds(Dataset):
    """Gives each sample with its id."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Sample]:
        return index, self.dataset[index]


def _stack(packed: bool, rows: Sequence[tuple[int, Sample]]) -> MicroBatch:
    ids, samples = zip(*rows, strict=True)

    def stacked(key: str) -> Tensor:
        return torch.stack([sample[key] for sample in samples])

    positions_BS = stacked("position_ids")
    return MicroBatch(
        tokens=stacked("tokens"),
        labels=stacked("labels"),
        position_ids=positions_BS,
        loss_mask=stacked("loss_mask"),
        sample_ids=ids,
        # Here, while positions are in host memory: later the device would have to be waited for.
        segments=packed_segments(positions_BS) if packed else None,
    )
