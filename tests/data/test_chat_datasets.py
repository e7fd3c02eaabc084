"""Rows of conversations: right tensors, every sample once an epoch, one order whatever the start, blends, errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.chat_datasets import training_rows
from megatron_kd.data.samples.datasets import build_datasets
from megatron_kd.data.tokens.tokenizer import NullTokenizer
from megatron_kd.errors import ConfigError, InputError

WriteTokens = Callable[[str, Sequence[Sequence[int]]], str]

EOS, SEQ = 99, 16


@pytest.fixture
def write_chat(write_tokens: WriteTokens) -> Callable[..., str]:
    """`write_chat(name, lengths, first=0)`: conversation i repeats `first + i`; its second half is learnt."""

    def write(name: str, lengths: Sequence[int], first: int = 0) -> str:
        prefix = write_tokens(name, [[first + i] * length for i, length in enumerate(lengths)])
        mask = [int(place >= length // 2) for length in lengths for place in range(length)]
        Path(f"{prefix}.loss_mask.bin").write_bytes(np.array(mask, dtype=np.uint8).tobytes())
        return prefix

    return write


def _train(samples: int, seed: int = 5, **cfg: Any) -> Dataset:
    counts = {"train_samples": samples, "valid_samples": 0, "test_samples": 0}
    settings = DatasetConfig(chat=True, **cfg)
    dataset = build_datasets(settings, seq_length=SEQ, seed=seed, tokenizer=NullTokenizer(100), **counts)[0]
    assert dataset is not None
    return dataset


def _rows(dataset: Dataset) -> list[dict[str, torch.Tensor]]:
    return [dataset[index] for index in range(len(dataset))]


def _ids(rows: Sequence[dict[str, torch.Tensor]]) -> list[int]:
    """The conversations that each row has, by their first tokens."""
    return sorted(int(row["tokens"][i]) for row in rows for i in range(SEQ) if row["position_ids"][i] == 0)


def test_an_unpacked_row_is_one_conversation_and_padding(write_chat: Callable[..., str]) -> None:
    row = _train(1, data_path=[write_chat("a", [6])], split="1,0,0")[0]
    assert row["tokens"].tolist() == [0] * 5 + [EOS] * 11
    assert row["labels"].tolist() == [0] * 5 + [EOS] * 11
    assert row["loss_mask"].tolist() == [0, 0, 1, 1, 1] + [0] * 11  # of the labels: tokens 1 to 5, of which 3 to 5
    assert row["position_ids"].tolist() == list(range(SEQ))
    assert [value.dtype for value in row.values()] == [torch.int64, torch.int64, torch.float32, torch.int64]


def test_a_packed_row_has_no_label_across_samples(write_chat: Callable[..., str]) -> None:
    row = _train(1, train_data_path=[write_chat("a", [6, 5])], packed_sequence=True)[0]
    assert row["tokens"].tolist() == [0] * 5 + [1] * 4 + [EOS] * 7
    assert row["labels"].tolist() == [0] * 5 + [1] * 4 + [EOS] * 7
    assert row["loss_mask"].tolist() == [0, 0, 1, 1, 1] + [0, 1, 1, 1] + [0] * 7
    assert row["position_ids"].tolist() == [*range(5), *range(4), *range(7)]


def test_a_full_row_ends_in_no_padding(write_chat: Callable[..., str]) -> None:
    row = _train(1, train_data_path=[write_chat("a", [9, 9])], packed_sequence=True)[0]
    assert row["position_ids"].tolist() == [*range(8), *range(8)]


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_each_conversation_once_in_an_order_of_its_own(
    packed: bool, write_chat: Callable[..., str]
) -> None:
    lengths = [4 + n % 9 for n in range(40)]
    cfg = {"train_data_path": [write_chat("a", lengths)], "packed_sequence": packed}
    count = training_rows(DatasetConfig(chat=True, **cfg), SEQ)
    assert count == 40 if not packed else count < 25
    rows = _rows(_train(2 * count, **cfg))
    for epoch in (rows[:count], rows[count:]):
        assert [i for i in _ids(epoch) if i != EOS] == list(range(40))
        assert sum(int(row["loss_mask"].sum()) for row in epoch) == sum(n - n // 2 for n in lengths)
    assert [row["tokens"].tolist() for row in rows[:count]] != [row["tokens"].tolist() for row in rows[count:]]
    other = _rows(_train(2 * count, seed=6, **cfg))
    assert [row["tokens"].tolist() for row in other] != [row["tokens"].tolist() for row in rows]


def test_rows_are_a_function_of_their_number_and_survive_pickling(write_chat: Callable[..., str]) -> None:
    cfg = {"train_data_path": [write_chat("a", range(4, 30))], "packed_sequence": True}
    first, again = _train(60, **cfg), pickle.loads(pickle.dumps(_train(60, **cfg)))
    for index in (59, 0, 31, 30):
        assert all(torch.equal(value, again[index][name]) for name, value in first[index].items())


@pytest.mark.parametrize("weights", [False, True])
def test_a_longer_run_reads_the_same_rows_first(weights: bool, write_chat: Callable[..., str]) -> None:
    a, b = write_chat("a", range(4, 15)), write_chat("b", range(4, 12), first=50)
    cfg = {"train_data_path": [0.7, a, 0.3, b] if weights else [a, b], "packed_sequence": True}
    short, long = _train(17, **cfg), _train(90, **cfg)  # less than two epochs, and many
    for index in range(17):
        assert all(torch.equal(value, long[index][name]) for name, value in short[index].items())


@pytest.mark.parametrize(("long_samples", "kept"), [("truncate", [0, 1, 3]), ("drop", [0, 3])])
def test_long_conversations_are_cut_or_dropped_and_told(
    long_samples: str, kept: list[int], write_chat: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the third, nothing within 16 tokens is the assistant's; the fourth is exactly as long as may be.
    prefix = write_chat("a", [5, 30, 100, 17])
    cfg = {"train_data_path": [prefix], "long_samples": long_samples}
    rows = _rows(_train(len(kept), **cfg))
    assert [i for i in _ids(rows) if i != EOS] == kept
    assert all(row["loss_mask"].sum() > 0 for row in rows)
    told = capsys.readouterr().out
    if long_samples == "drop":
        assert f"{prefix}, train: 2 conversations in 2 rows of 16 tokens" in told and "2 longer ones dropped" in told
    else:
        assert "3 conversations in 3 rows" in told and "1 cut to that length; 1 left out, nothing to learn" in told


def test_splits_of_one_file_share_no_conversation(write_chat: Callable[..., str]) -> None:
    cfg = DatasetConfig(chat=True, data_path=[write_chat("a", [6] * 20)], split="7,3,0")
    counts = {"train_samples": 14, "valid_samples": 6, "test_samples": 0}
    train, valid, test = build_datasets(cfg, seq_length=SEQ, seed=1, tokenizer=NullTokenizer(100), **counts)
    assert test is None and train is not None and valid is not None
    assert (_ids(_rows(train)), _ids(_rows(valid))) == (list(range(14)), list(range(14, 20)))


def test_a_blend_keeps_its_proportion_all_the_way(write_chat: Callable[..., str]) -> None:
    a, b = write_chat("a", [6] * 10), write_chat("b", [6] * 10, first=50)
    first = [int(row["tokens"][0]) for row in _rows(_train(200, train_data_path=[0.7, a, 0.3, b]))]
    for upto in (10, 50, 200):
        assert abs(sum(token < 50 for token in first[:upto]) / upto - 0.7) <= 1 / upto + 1e-9
    assert set(first) == {*range(10), *range(50, 60)}
    plain = [int(row["tokens"][0]) for row in _rows(_train(20, train_data_path=[a, b]))]
    assert sorted(plain) == [*range(10), *range(50, 60)]  # without weights: one file


def test_rows_are_worked_out_once_and_again_when_the_data_changes(
    write_chat: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {"train_data_path": [write_chat("a", [6, 9])], "path_to_cache": str(tmp_path / "cache")}
    _train(2, **cfg)
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr("megatron_kd.data.chat.chat_rows.make_rows", lambda *_: pytest.fail("worked out again"))
    _train(2, **cfg)
    monkeypatch.undo()
    write_chat("a", [6, 9, 7])
    assert len(_rows(_train(3, **cfg))) == 3
    assert {path.name for path in (tmp_path / "cache").iterdir()} > {kept.name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"has no a\.loss_mask\.bin; run `megatron-kd preprocess --chat`"),
        ("short", r"a\.loss_mask\.bin' has 10 bytes for 11 tokens"),
        ("nothing learnt", "has nothing to learn for the train split, of 2 conversations"),
        ("foreign ids", r"a\.bin, document 0, holds token id 15[01]"),
    ],
)
def test_files_that_do_not_serve_are_refused(damage: str, message: str, write_chat: Callable[..., str]) -> None:
    prefix = write_chat("a", [6, 5], first=150 if damage == "foreign ids" else 0)
    mask = Path(f"{prefix}.loss_mask.bin")
    if damage == "missing":
        mask.unlink()
    elif damage != "foreign ids":
        mask.write_bytes(b"\x00" * (10 if damage == "short" else 11))
    with pytest.raises(InputError, match=message):
        _rows(_train(2, train_data_path=[prefix]))


def test_a_cache_that_cannot_be_kept_is_named(write_chat: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be kept in .*set dataset\.path_to_cache"):
        _train(1, train_data_path=[write_chat("a", [6])], path_to_cache=str(tmp_path / "file" / "cache"))


def test_a_split_without_data_is_named(write_chat: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="nothing to learn for the train split, of 0 conversations"):
        _train(1, data_path=[write_chat("a", [6] * 4)], split="1,99,0")
