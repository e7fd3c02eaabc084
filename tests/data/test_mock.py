"""Mock data: a pure function of seed, split and index, of a process with few successors a token."""

from __future__ import annotations

import pytest
import torch

from megatron_kd.data.samples.mock import MockDataset


def _mock(vocab_size: int = 1000, seed: int = 1, split: int = 0, num_samples: int = 50) -> MockDataset:
    return MockDataset(vocab_size=vocab_size, seq_length=64, num_samples=num_samples, seed=seed, split=split)


def test_a_sample_depends_on_seed_split_and_index_alone() -> None:
    first = _mock()
    backwards = {index: first[index]["tokens"] for index in reversed(range(50))}
    assert all(torch.equal(_mock()[index]["tokens"], tokens) for index, tokens in backwards.items())
    assert torch.equal(_mock(num_samples=9)[3]["tokens"], backwards[3])
    for other in (_mock()[4], _mock(seed=2)[3], _mock(split=1)[3]):
        assert not torch.equal(other["tokens"], backwards[3])


def test_labels_are_the_next_tokens() -> None:
    sample = _mock()[0]
    assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
    assert torch.equal(sample["position_ids"], torch.arange(64))
    assert sample["loss_mask"].sum() == 64


@pytest.mark.parametrize("vocab_size", [2, 100, 100_000])
def test_splits_share_one_learnable_process_within_the_vocabulary(vocab_size: int) -> None:
    successors: dict[int, set[int]] = {}
    for dataset in (_mock(vocab_size), _mock(vocab_size, split=1)):
        for index in range(50):
            sample = dataset[index]
            for token, label in zip(sample["tokens"].tolist(), sample["labels"].tolist(), strict=True):
                assert 0 <= token < vocab_size
                successors.setdefault(token, set()).add(label)
    assert max(map(len, successors.values())) <= 3
    assert len(successors) <= 256


def test_there_is_an_end() -> None:
    assert len(list(_mock())) == 50
    with pytest.raises(IndexError):
        _mock()[50]
