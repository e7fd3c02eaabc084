"""Packing: every sample once, no row too full, few rows, and the same ones every time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from megatron_kd.data.chat.packed_rows import best_fit, one_a_row


def _lengths(count: int, size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, size + 1, count)


@pytest.mark.parametrize(("count", "size", "seed"), [(1, 1, 0), (50, 7, 1), (300, 64, 2), (2000, 512, 3)])
def test_every_sample_is_in_one_row_that_has_room(count: int, size: int, seed: int) -> None:
    lengths = _lengths(count, size, seed)
    packs = best_fit(lengths, size)
    assert sorted(packs.samples.tolist()) == list(range(count))
    filled = [int(lengths[packs.row(row)].sum()) for row in range(len(packs))]
    assert max(filled) <= size and sum(filled) == lengths.sum()
    assert len(packs) <= 11 / 9 * np.ceil(lengths.sum() / size) + count * (lengths > size / 2).mean() / 2 + 4
    again = best_fit(lengths, size)
    assert (again.samples == packs.samples).all() and (again.starts == packs.starts).all()


def test_short_samples_fill_rows_to_the_brim() -> None:
    lengths = _lengths(5000, 100, 4) // 4 + 1
    packs = best_fit(lengths, 512)
    assert lengths.sum() / (len(packs) * 512) > 0.995


def test_samples_that_fit_together_are_found() -> None:
    packs = best_fit(np.array([6, 3, 5, 5, 4, 7]), 10)
    assert [packs.row(row).tolist() for row in range(len(packs))] == [[0, 4], [1, 5], [2, 3]]


def test_many_samples_of_one_length_take_no_longer_a_sample() -> None:
    begin = time.process_time()
    assert len(best_fit(np.full(40_000, 300), 512)) == 40_000
    assert time.process_time() - begin < 5.0


def test_no_packing_is_a_row_for_each() -> None:
    packs = one_a_row(3)
    assert [packs.row(row).tolist() for row in range(len(packs))] == [[0], [1], [2]]
