"""Datasets: right tensors, blends in proportion, one cache for all ranks, and errors that say what is missing."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.samples.datasets import Datasets, build_datasets
from megatron_kd.data.samples.mock import MockDataset
from megatron_kd.data.tokens.tokenizer import NullTokenizer
from megatron_kd.errors import ConfigError, InputError
from tests.faults.damage import Payload
from tests.ranks import run_ranks

WriteTokens = Callable[[str, Sequence[Sequence[int]]], str]

EOS = 99
SEQ = 16


def _documents(first: int, count: int, length: int = 20) -> list[list[int]]:
    """Documents of one repeated id each, `first` for the first of them, with an end."""
    return [[first + number] * (length - 1) + [EOS] for number in range(count)]


def _build(cfg: DatasetConfig, train: int = 40, valid: int = 0, test: int = 0, seq: int = SEQ) -> Datasets:
    return build_datasets(
        cfg,
        seq_length=seq,
        train_samples=train,
        valid_samples=valid,
        test_samples=test,
        seed=5,
        tokenizer=NullTokenizer(100),
    )


def _train(cfg: DatasetConfig, samples: int = 40) -> Dataset:
    dataset = _build(cfg, samples)[0]
    assert dataset is not None
    return dataset


def _ids(dataset: Dataset | None) -> set[int]:
    assert dataset is not None
    return {token for index in range(len(dataset)) for token in dataset[index]["tokens"].tolist()}


def test_a_sample_has_its_four_tensors(write_tokens: WriteTokens) -> None:
    sample = _train(DatasetConfig(data_path=[write_tokens("a", _documents(0, 40))]))[3]
    assert sample.keys() == {"tokens", "labels", "loss_mask", "position_ids"}
    assert all(tensor.shape == (SEQ,) for tensor in sample.values())
    assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
    assert torch.equal(sample["position_ids"], torch.arange(SEQ))
    assert sample["loss_mask"].tolist() == [1.0] * SEQ


def test_ends_of_documents_are_masked_when_asked(write_tokens: WriteTokens) -> None:
    dataset = _train(DatasetConfig(data_path=[write_tokens("a", _documents(0, 40))], eod_mask_loss=True))
    for index in range(len(dataset)):
        assert torch.equal(dataset[index]["loss_mask"] == 0, dataset[index]["tokens"] == EOS)


def test_splits_of_one_source_share_no_document(write_tokens: WriteTokens) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", _documents(0, 40))], split="70,30,0")
    train, valid, test = _build(cfg, train=30, valid=10)
    assert test is None
    assert _ids(train) - {EOS} == set(range(28))
    assert _ids(valid) - {EOS} == set(range(28, 40))


def test_more_samples_than_data_are_further_epochs(write_tokens: WriteTokens) -> None:
    dataset = _train(DatasetConfig(data_path=[write_tokens("a", _documents(0, 5))]), samples=200)
    assert len(dataset) >= 200
    assert _ids(dataset) == {0, 1, 2, 3, 4, EOS}


@pytest.mark.parametrize(("weights", "share"), [((0.25, 0.75), 0.25), (None, 0.5)])
def test_a_blend_is_by_weight_or_by_tokens(
    write_tokens: WriteTokens, tmp_path: Path, weights: tuple[float, float] | None, share: float
) -> None:
    a, b = write_tokens("a", _documents(0, 20)), write_tokens("b", _documents(50, 20))
    blend: list[str | float] = [a, b] if weights is None else [weights[0], a, weights[1], b]
    dataset = _train(DatasetConfig(data_path=blend, path_to_cache=str(tmp_path / "cache")), samples=400)
    from_a = sum(bool((dataset[index]["tokens"] < 50).any()) for index in range(400))
    assert abs(from_a / 400 - share) < 0.01
    assert list((tmp_path / "cache").glob("*.npy"))


def test_each_split_from_its_own_path(write_tokens: WriteTokens) -> None:
    cfg = DatasetConfig(
        train_data_path=[write_tokens("a", _documents(0, 20)), write_tokens("b", _documents(30, 20))],
        valid_data_path=[write_tokens("c", _documents(60, 20))],
    )
    train, valid, _ = _build(cfg, valid=4)
    assert max(_ids(train) - {EOS}) < 60
    assert min(_ids(valid)) >= 60


def test_mock_wins_over_paths_and_its_splits_differ() -> None:
    train, valid, test = _build(DatasetConfig(mock=True, data_path=["no/such"]), train=3, valid=2)
    assert isinstance(train, MockDataset) and isinstance(valid, MockDataset) and test is None
    assert (len(train), len(valid)) == (3, 2)
    assert not torch.equal(train[0]["tokens"], valid[0]["tokens"])


def test_data_made_anew_is_not_read_through_the_old_cache(write_tokens: WriteTokens) -> None:
    prefix = write_tokens("a", _documents(0, 40))
    _train(DatasetConfig(data_path=[prefix]))
    write_tokens("a", _documents(40, 10, length=35))
    assert _ids(_train(DatasetConfig(data_path=[prefix]), samples=20)) == {*range(40, 49), EOS}


def test_the_cache_is_reused_and_left_whole(write_tokens: WriteTokens, tmp_path: Path) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", _documents(0, 40))])
    first = [_train(cfg)[index]["tokens"] for index in range(40)]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.cache").iterdir()}
    assert len(files) == 4
    again = _train(cfg)
    assert all(torch.equal(tokens, again[index]["tokens"]) for index, tokens in enumerate(first))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a.cache").iterdir()} == files


def _tokens_on_this_rank(cfg: DatasetConfig) -> list[list[int]]:
    train, valid, _ = _build(cfg, train=20, valid=4)
    assert train is not None and valid is not None
    return [train[index]["tokens"].tolist() for index in range(20)] + [valid[0]["tokens"].tolist()]


@pytest.mark.parametrize("blended", [False, True])
def test_two_ranks_build_the_same_data(write_tokens: WriteTokens, tmp_path: Path, blended: bool) -> None:
    a, b = write_tokens("a", _documents(0, 20)), write_tokens("b", _documents(20, 20))
    data_path: list[str | float] = [0.5, a, 0.5, b] if blended else [a]
    cfg = DatasetConfig(data_path=data_path, split="70,30,0", path_to_cache=str(tmp_path / "cache"))
    first, second = run_ranks(2, _tokens_on_this_rank, cfg)
    assert first == second == _tokens_on_this_rank(cfg)


def _refused_on_this_rank(cfg: DatasetConfig) -> str:
    with pytest.raises(InputError) as caught:
        _build(cfg, train=20)
    return str(caught.value)


@pytest.mark.parametrize("blended", [False, True])
def test_all_ranks_tell_of_a_damaged_cache(write_tokens: WriteTokens, tmp_path: Path, blended: bool) -> None:
    a, b = write_tokens("a", _documents(0, 20)), write_tokens("b", _documents(20, 20))
    cache = tmp_path / "cache"
    cfg = DatasetConfig(data_path=[0.5, a, 0.5, b] if blended else [a], split="100,0,0", path_to_cache=str(cache))
    _build(cfg, train=20)
    for index in cache.glob("*sample_index.npy"):
        index.write_bytes(b"no array")
    for told in run_ranks(2, _refused_on_this_rank, cfg):
        assert "sample_index.npy' is damaged" in told


def test_too_little_data_tells_what_there_is_and_what_is_needed(write_tokens: WriteTokens) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", _documents(0, 10))], split="80,20,0")
    with pytest.raises(ConfigError) as caught:
        _build(cfg, valid=1, test=1, seq=64)
    valid, test = caught.value.lines
    assert "dataset.data_path" in valid
    assert "40 tokens in 2 documents for the valid split" in valid
    assert "model.seq_length=64 needs 65" in valid
    assert "0 tokens in 0 documents for the test split" in test


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (DatasetConfig(), r"dataset\.train_data_path is not set.*dataset\.data_path.*dataset\.mock=true"),
        (DatasetConfig(data_path=[]), r"dataset\.data_path=\[\]: is empty"),
        (DatasetConfig(data_path=["no/such"]), r"dataset\.data_path: no/such\.bin and no/such\.idx not found"),
        (
            DatasetConfig(data_path=[0.5, "a", "b"]),
            r"dataset\.data_path=\[0\.5, a, b\]: must list prefixes, or a weight before every prefix",
        ),
        (
            DatasetConfig(data_path=[0.0, "a", 1, "b"]),
            r"dataset\.data_path=\[0\.0, a, 1, b\]: has weights that are not finite numbers greater than 0",
        ),
    ],
)
def test_a_wrong_path_is_named(cfg: DatasetConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _build(cfg)


def test_a_wrong_split_is_named(write_tokens: WriteTokens) -> None:
    prefix = write_tokens("a", _documents(0, 10))
    for split in ("", "0,0,0", "1,2,3,4", "-1,2", "a", "1e999"):
        with pytest.raises(InputError, match=r"dataset\.split="):
            _build(DatasetConfig(data_path=[prefix], split=split))


def test_damaged_files_are_found(write_tokens: WriteTokens, tmp_path: Path) -> None:
    prefix = write_tokens("a", _documents(0, 10))
    content = (tmp_path / "a.bin").read_bytes()
    for damaged, message in ((content[:-2], r"describes 400 bytes in '.*a\.bin', which has 398"), (b"", "is empty")):
        (tmp_path / "a.bin").write_bytes(damaged)
        with pytest.raises(ConfigError, match=message):
            _build(DatasetConfig(data_path=[prefix]))
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "a.idx").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="not a megatron index"):
        _build(DatasetConfig(data_path=[prefix]))


def test_ids_of_another_tokenizer_are_found(write_tokens: WriteTokens) -> None:
    dataset = _train(DatasetConfig(data_path=[write_tokens("a", _documents(150, 10))]))
    with pytest.raises(InputError, match="tokenizer has 100 ids"):
        dataset[0]


def test_a_cache_that_cannot_be_written_names_the_field(write_tokens: WriteTokens, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cfg = DatasetConfig(data_path=[write_tokens("a", _documents(0, 10))], path_to_cache=str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"set dataset\.path_to_cache"):
        _build(cfg)


def test_a_cache_that_is_no_array_is_refused_and_not_unpickled(write_tokens: WriteTokens, tmp_path: Path) -> None:
    cfg = DatasetConfig(data_path=[write_tokens("a", _documents(0, 40))])
    _train(cfg)
    for index in (tmp_path / "a.cache").glob("*_index.npy"):
        whole = index.read_bytes()
        for content in (pickle.dumps(Payload(tmp_path / "mark")), whole[:-9], b""):
            index.write_bytes(content)
            with pytest.raises(InputError, match=re.escape(f"the index cache '{index}' is damaged")):
                _train(cfg)
        index.write_bytes(whole)
    assert not (tmp_path / "mark").exists()
