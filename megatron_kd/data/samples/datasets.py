"""Training, validation and test data from a configuration: megatron-core's GPTDataset, conversations, or made-up
samples.

A sample is a dict of tokens, labels, position_ids (int64) and loss_mask (float32), each [S]. There is no attention
mask: attention is causal by construction. In text it reaches over document ends, as in megatron-core's own training;
in packed conversations it does not, and position_ids say where each begins (`models.packing`).

Legend: S sequence length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from torch.utils.data import Dataset

from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.chat_datasets import chat_datasets
from megatron_kd.data.samples.gpt_dataset import CachedGPTDataset, DatasetBuilder, DatasetTokenizer
from megatron_kd.data.samples.mock import MockDataset
from megatron_kd.data.tokens.blend_files import (
    SPLITS,
    Blend,
    check_tokens,
    count_tokens,
    foreign_id,
    no_data,
    parse_blend,
    split_matrix,
    weights_by_tokens,
)
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import InputError

Datasets = tuple[Dataset | None, Dataset | None, Dataset | None]

_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


def build_datasets(
    cfg: DatasetConfig,
    *,
    seq_length: int,
    train_samples: int,
    valid_samples: int,
    test_samples: int,
    seed: int,
    tokenizer: Tokenizer,
    path_to_cache: str | None = None,
) -> Datasets:
    """The train, valid and test datasets, each of at least the samples asked for; None where that is 0.

    Where the data has fewer tokens than asked for, it is read in more epochs, shuffled anew in each. Every rank
    must call this: rank 0 builds the index cache while the others wait. `path_to_cache` and `seed` give way to the
    values of `cfg`, where those are set.

    Raises:
        InputError: no data named, files missing or damaged, or too few tokens for one sample; all that apply.
    """
    samples = (train_samples, valid_samples, test_samples)
    seed = seed if cfg.random_seed is None else cfg.random_seed
    if cfg.mock:
        return _three(_mock(split, count, seq_length, seed, tokenizer) for split, count in enumerate(samples))
    if cfg.chat:
        built = chat_datasets(
            cfg, seq_length=seq_length, samples=samples, seed=seed, pad_id=tokenizer.eos_id, path_to_cache=path_to_cache
        )
        return _three(_checked(data, tokenizer, cfg) for data in built)
    common: dict[str, Any] = {
        "random_seed": seed,
        "sequence_length": seq_length,
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": cfg.eod_mask_loss,
        "create_attention_mask": False,
        "path_to_cache": cfg.path_to_cache or path_to_cache,
    }
    config = _one_source(cfg, samples, tokenizer, common) or _source_per_split(cfg, samples, tokenizer, common)
    built = DatasetBuilder(CachedGPTDataset, list(samples), _on_every_rank, config).build()
    return _three(_checked(data, tokenizer, cfg) for data in built)


def training_tokens(cfg: DatasetConfig) -> int:
    """The tokens of the training split, ends of documents included; of a blend all its files', whatever the weights.

    Raises:
        ConfigError: files that are missing or damaged.
    """
    if cfg.data_path is not None:
        blend, part = parse_blend("dataset.data_path", cfg.data_path), split_matrix(cfg.split)[0]
    else:
        blend, part = parse_blend("dataset.train_data_path", cfg.train_data_path or []), (0.0, 1.0)
    return sum(count_tokens(prefix, part or (0.0, 0.0))[0] for prefix in blend.prefixes)


def _checked(dataset: Dataset | None, tokenizer: Tokenizer, cfg: DatasetConfig) -> Dataset | None:
    if dataset is None:
        return None
    lists = (cfg.data_path, cfg.train_data_path, cfg.valid_data_path, cfg.test_data_path)
    prefixes = [prefix for entries in lists if entries for prefix in parse_blend("", entries, chat=cfg.chat).prefixes]
    return TokenSamples(dataset, tokenizer.vocab_size, prefixes)


class TokenSamples(Dataset):
    """A dataset reduced to the four tensors of a sample, with its token ids checked.

    Args:
        prefixes: of the files behind it, to name one with an id that is none.
    """

    def __init__(self, dataset: Dataset, vocab_size: int, prefixes: Sequence[str] = ()):
        self.dataset, self.vocab_size, self.prefixes = dataset, vocab_size, prefixes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Tokens, labels, loss_mask and position_ids, each [S].

        Raises:
            InputError: an id that the tokenizer does not have, which an embedding would report as a bad index.
        """
        sample = self.dataset[index]
        low, high = (int(bound) for bound in torch.cat((sample["tokens"], sample["labels"])).aminmax())
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            found = (foreign_id(prefix, self.vocab_size) for prefix in self.prefixes)
            raise InputError(
                f"{next(filter(None, found), 'the dataset')} holds token id {wrong} and the tokenizer has "
                f"{self.vocab_size} ids: it was tokenised with another tokenizer, or damaged; set "
                "tokenizer.tokenizer_model to that one, or run `megatron-kd preprocess` again"
            )
        return {key: sample[key] for key in _KEYS}


def _mock(split: int, count: int, seq_length: int, seed: int, tokenizer: Tokenizer) -> Dataset | None:
    if not count:
        return None
    return MockDataset(
        vocab_size=tokenizer.vocab_size, seq_length=seq_length, num_samples=count, seed=seed, split=split
    )


def _one_source(
    cfg: DatasetConfig, samples: Sequence[int], tokenizer: Tokenizer, common: dict[str, Any]
) -> GPTDatasetConfig | None:
    """All splits cut from `dataset.data_path`; None where that is not set."""
    if cfg.data_path is None:
        return None
    blend = parse_blend("dataset.data_path", cfg.data_path)
    parts = split_matrix(cfg.split)
    check_tokens(blend, parts, samples, common["sequence_length"])
    config = GPTDatasetConfig(
        blend=(blend.prefixes, weights_by_tokens(blend)),
        split=cfg.split,
        tokenizer=DatasetTokenizer.of(tokenizer, blend.prefixes),
        **common,
    )
    # A split of which nothing is asked is not built: it may well have no document at all.
    config.split_matrix = [part if count else None for part, count in zip(parts, samples, strict=True)]
    return config


def _source_per_split(
    cfg: DatasetConfig, samples: Sequence[int], tokenizer: Tokenizer, common: dict[str, Any]
) -> GPTDatasetConfig:
    """Each split from its own `dataset.*_data_path`."""
    blends: list[Blend | None] = []
    paths = (cfg.train_data_path, cfg.valid_data_path, cfg.test_data_path)
    for split, (name, path, count) in enumerate(zip(SPLITS, paths, samples, strict=True)):
        if not count:
            blends.append(None)
            continue
        if path is None:
            raise InputError(no_data(name))
        blend = parse_blend(f"dataset.{name}_data_path", path)
        only_this = [count if other == split else 0 for other in range(len(SPLITS))]
        check_tokens(blend, [(0.0, 1.0)] * len(SPLITS), only_this, common["sequence_length"])
        blends.append(blend)
    prefixes = [prefix for blend in blends if blend for prefix in blend.prefixes]
    return GPTDatasetConfig(
        blend_per_split=[blend and (blend.prefixes, weights_by_tokens(blend)) for blend in blends],
        tokenizer=DatasetTokenizer.of(tokenizer, prefixes),
        **common,
    )


def _on_every_rank() -> bool:
    return True


def _three(datasets: Iterable[Dataset | None]) -> Datasets:
    train, valid, test = datasets
    return train, valid, test
