"""The order of text: the same samples however many are asked for, and in the first epoch megatron-core's own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_kd.checkpoints.saved_state import BY_EPOCH, TOGETHER
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.samples.epoch_order import build_indices, samples_until
from megatron_kd.data.tokens.tokenizer import NullTokenizer

WriteTokens = Callable[[str, Sequence[Sequence[int]]], str]

SEQ = 16


def corpus(seed: int, documents: int = 12) -> list[list[int]]:
    """Documents of random ids and lengths."""
    ids = np.random.default_rng(seed)
    return [ids.integers(1000, size=ids.integers(3, 40)).tolist() for _ in range(documents)]


def _samples(cfg: DatasetConfig, train: int, valid: int = 0, *, order: str = BY_EPOCH) -> list[list[list[int]]]:
    """Tokens and last label of the samples of the training and validation sets."""
    built = build_datasets(
        cfg, seq_length=SEQ, train_samples=train, valid_samples=valid, test_samples=0, seed=5,
        tokenizer=NullTokenizer(1000), order=order,
    )  # fmt: skip
    counts = zip(built, (train, valid), strict=False)
    found = [[] if data is None else [data[i] for i in range(count)] for data, count in counts]
    return [[[*s["tokens"].tolist(), int(s["labels"][-1])] for s in samples] for samples in found]


def _blends(write_tokens: WriteTokens) -> list[list[str | float]]:
    a, b = write_tokens("a", corpus(1)), write_tokens("b", corpus(2, 30))
    return [[a], [a, b], [0.9, a, 0.1, b]]


@pytest.mark.parametrize("blend", range(3))
def test_sample_i_is_the_same_in_runs_of_all_lengths(blend: int, write_tokens: WriteTokens) -> None:
    cfg = DatasetConfig(data_path=_blends(write_tokens)[blend], split="70,30,0")
    longest, valid = _samples(cfg, 300, 40)
    for count in (1, 7, 20, 90, 299):
        train, same_valid = _samples(cfg, count, 40)
        assert train == longest[:count]
        assert same_valid == valid
    assert _samples(cfg, 10, 90)[1][:40] == valid


def test_the_first_epoch_is_megatron_cores_own(write_tokens: WriteTokens) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", corpus(1))], split="100,0,0")
    count = (sum(map(len, corpus(1))) - 1) // SEQ
    assert _samples(cfg, count) == _samples(cfg, count, order=TOGETHER)
    assert _samples(cfg, 3 * count) != _samples(
        cfg, 3 * count, order=TOGETHER
    )  # nor is either read from the other's cache


def test_each_epoch_reads_every_token_once_in_an_order_of_its_own() -> None:
    lengths, S = np.array([len(ids) for ids in corpus(3)], dtype=np.int32), 8
    documents, T = np.arange(1, 11), int(lengths[1:11].sum())
    indices = build_indices(documents, lengths, 5 * T // S, S, seed=7)
    ends = [samples_until(epoch, T, S) for epoch in range(6)]
    epochs = [indices.shuffle[first:last].tolist() for first, last in itertools.pairwise(ends)]
    for epoch, (first, last) in enumerate(itertools.pairwise(ends)):
        assert sorted(epochs[epoch]) == list(range(first, last)) != epochs[epoch]
        order = indices.documents[epoch * 10 : (epoch + 1) * 10]
        assert Counter(order.tolist()) == Counter(documents.tolist())
    assert len({tuple(indices.documents[e * 10 : e * 10 + 10]) for e in range(5)}) == 5
    # Sample i begins at token i * S of the documents in their order.
    starts = np.concatenate(([0], np.cumsum(lengths[indices.documents])))
    places = starts[indices.samples[:, 0]] + indices.samples[:, 1]
    assert places.tolist() == [i * S for i in range(len(places))]


def test_an_epoch_shorter_than_a_sample(write_tokens: WriteTokens) -> None:
    lengths = np.array([5], dtype=np.int32)
    assert [samples_until(epoch, 5, 8) for epoch in range(5)] == [0, 0, 1, 1, 2]
    assert build_indices(np.array([0]), lengths, 2, 8, seed=1).shuffle.tolist() == [0, 1]


def test_the_cache_has_no_half_written_files(write_tokens: WriteTokens, tmp_path: Path) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", corpus(1))], path_to_cache=str(tmp_path / "cache"))
    _samples(cfg, 40)
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(names) == 4 and not [name for name in names if name.startswith(".")]
