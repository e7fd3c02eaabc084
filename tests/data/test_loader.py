"""The loader: every split of a global batch covers the same samples, and a step's data depends on the step alone."""

from __future__ import annotations

import pytest
import torch

from megatron_kd.data.loader import MicroBatchSampler, micro_batches
from megatron_kd.data.samples.mock import MockDataset
from megatron_kd.errors import InputError
from megatron_kd.models.micro_batch import MicroBatch

GLOBAL_BATCH = 16
STEPS = 3
TENSORS = ("tokens", "labels", "loss_mask", "position_ids")


@pytest.fixture
def dataset() -> MockDataset:
    return MockDataset(vocab_size=50, seq_length=8, num_samples=GLOBAL_BATCH * STEPS + 5, seed=3)


def _read(
    dataset: MockDataset,
    rank: int = 0,
    size: int = 1,
    micro: int = 4,
    start_step: int = 0,
    num_workers: int = 0,
    packed: bool = False,
) -> list[MicroBatch]:
    batches = micro_batches(
        dataset,
        start_step=start_step,
        global_batch_size=GLOBAL_BATCH,
        micro_batch_size=micro,
        data_parallel_rank=rank,
        data_parallel_size=size,
        num_workers=num_workers,
        packed=packed,
    )
    return list(batches)


def _step(batches: list[MicroBatch], step: int) -> list[MicroBatch]:
    per_step = len(batches) // STEPS
    return batches[step * per_step : (step + 1) * per_step]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_every_layout_covers_the_same_samples_in_the_documented_order(
    dataset: MockDataset, size: int, micro: int
) -> None:
    by_rank = [_read(dataset, rank, size, micro) for rank in range(size)]
    for step in range(STEPS):
        # By micro-batch, then rank: reading one of each rank in turn gives the samples in order.
        turns = zip(*(_step(batches, step) for batches in by_rank), strict=True)
        ids = [i for turn in turns for batch in turn for i in batch.sample_ids]
        assert ids == list(range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))


def test_a_batch_holds_the_tensors_of_its_samples(dataset: MockDataset) -> None:
    batch = _read(dataset, rank=1, size=2, micro=4)[1]
    assert batch.sample_ids == (12, 13, 14, 15)
    for key in TENSORS:
        assert getattr(batch, key).shape == (4, 8)
        assert torch.equal(getattr(batch, key)[2], dataset[14][key])
    assert batch.loss_mask.dtype == torch.float32
    assert {tensor.dtype for tensor in (batch.tokens, batch.labels, batch.position_ids)} == {torch.int64}
    assert batch.segments is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_packed_rows_bring_their_segments(dataset: MockDataset, num_workers: int) -> None:
    batch = _read(dataset, micro=2, packed=True, num_workers=num_workers)[0]
    assert batch.segments is not None
    assert batch.segments.cu_seqlens_q.tolist() == [0, 8, 16]  # each of the two rows is one sample here


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_step_equals_skipping_to_it(dataset: MockDataset, num_workers: int) -> None:
    unbroken = _read(dataset, rank=1, size=2)
    resumed = _read(dataset, rank=1, size=2, start_step=2, num_workers=num_workers)
    assert len(resumed) == 2
    for expected, batch in zip(_step(unbroken, 2), resumed, strict=True):
        assert expected.sample_ids == batch.sample_ids
        assert all(torch.equal(getattr(expected, key), getattr(batch, key)) for key in TENSORS)


def test_reading_leaves_the_global_random_state_alone(dataset: MockDataset) -> None:
    before = torch.get_rng_state()
    _read(dataset)
    assert torch.equal(before, torch.get_rng_state())


def test_the_last_partial_global_batch_is_not_read(dataset: MockDataset) -> None:
    assert len(_read(dataset, micro=4)) == STEPS * 4
    assert _read(dataset, start_step=STEPS) == []


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.global_batch_size=16 is not a multiple of .*3 x 2"):
        MicroBatchSampler(
            num_samples=64,
            start_step=0,
            global_batch_size=16,
            micro_batch_size=3,
            data_parallel_rank=0,
            data_parallel_size=2,
        )


def test_another_batch_reads_on_at_the_next_sample() -> None:
    sizes = {"micro_batch_size": 4, "data_parallel_rank": 0, "data_parallel_size": 1, "start_step": 0}
    first = MicroBatchSampler(num_samples=64, global_batch_size=16, **sizes)
    read = [i for ids in list(first)[: 2 * first.micro_batches_per_step] for i in ids]
    then = MicroBatchSampler(num_samples=64, global_batch_size=8, first_sample=len(read), **sizes)
    assert then.ids(0, 1)[-1] == 39
    assert read + [i for ids in then for i in ids] == list(range(64))
    assert len(then) == 8
