"""Training, validation and test data from a configuration: megatron-core's GPTDataset, conversations, or mock
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

from megatron_kd.checkpoints.saved_state import BY_EPOCH
from megatron_kd.config.blend import SplitData, parse_split, required
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.chat_datasets import chat_datasets
from megatron_kd.data.chat.chat_rows import RowSettings
from megatron_kd.data.samples.gpt_dataset import TEXT_DATASETS, DatasetBuilder, DatasetTokenizer
from megatron_kd.data.samples.mock import MockDataset
from megatron_kd.data.tokens.blend_files import blend_weights, checked_split, checked_splits, sample_problems
from megatron_kd.data.tokens.token_files import FOREIGN_CURE, ForeignId, count_tokens, foreign_id
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import ConfigError, InputError

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
    order: str = BY_EPOCH,
) -> Datasets:
    """The train, valid and test datasets, each of at least the samples asked for; None where that is 0.

    If the data has too few tokens, it is read for several epochs, reshuffled in each. Sample i does not depend on how
    many are asked for, except in the `order` of text that older runs have. Every rank must call this: rank 0 builds the
    index cache while the others wait. `path_to_cache` and `seed` give way to the values of `cfg`, where those are set.

    Raises:
        InputError: no data named, files missing or damaged, or too few tokens for one sample; all that apply.
    """
    samples = (train_samples, valid_samples, test_samples)
    seed = seed if cfg.random_seed is None else cfg.random_seed
    cache = cfg.path_to_cache or path_to_cache
    if cfg.mock:
        return _three(_mock(split, count, seq_length, seed, tokenizer) for split, count in enumerate(samples))
    splits = checked_splits(cfg, samples)
    if cfg.chat:
        settings = RowSettings.of(cfg, seq_length)
        built = chat_datasets(splits, samples, settings, seed=seed, pad_id=tokenizer.eos_id, path_to_cache=cache)
    else:
        config = _text_config(cfg, splits, seq_length, seed, tokenizer, cache)
        built = DatasetBuilder(TEXT_DATASETS[order], list(samples), _on_every_rank, config).build()
    prefixes = [prefix for data in splits if data for prefix in data.blend.prefixes]
    return _three(None if data is None else TokenSamples(data, tokenizer.vocab_size, prefixes) for data in built)


class TokenSamples(Dataset):
    """A dataset reduced to the four tensors of a sample, with its token ids checked.

    Args:
        prefixes: of the files behind it, so that an error can name the one with an invalid id.
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
            foreign = next(filter(None, found), ForeignId("the dataset", wrong, self.vocab_size))
            raise InputError(f"{foreign}; {FOREIGN_CURE}")
        return {key: sample[key] for key in _KEYS}


def training_tokens(cfg: DatasetConfig) -> int:
    """The tokens of the training split, ends of documents included; of a blend all its files', whatever the weights.

    Raises:
        InputError: no data named, or files that are missing or damaged.
    """
    data = checked_split(cfg, "train")
    return sum(count_tokens(prefix, data.part)[0] for prefix in data.blend.prefixes)


def _mock(split: int, count: int, seq_length: int, seed: int, tokenizer: Tokenizer) -> Dataset | None:
    if not count:
        return None
    return MockDataset(
        vocab_size=tokenizer.vocab_size, seq_length=seq_length, num_samples=count, seed=seed, split=split
    )


def _text_config(
    cfg: DatasetConfig,
    splits: Sequence[SplitData | None],
    seq_length: int,
    seed: int,
    tokenizer: Tokenizer,
    path_to_cache: str | None,
) -> GPTDatasetConfig:
    """The configuration of megatron-core's datasets: all splits cut from one blend, or each from its own.

    Raises:
        ConfigError: files with too few tokens for one sample.
    """
    if problems := [problem for data in splits if data for problem in sample_problems(data, seq_length, chat=False)]:
        raise ConfigError(problems)
    source, prefixes = _one_blend(cfg, splits) if cfg.data_path is not None else _blend_per_split(splits)
    config = GPTDatasetConfig(
        **source,
        tokenizer=DatasetTokenizer.of(tokenizer, prefixes),
        random_seed=seed,
        sequence_length=seq_length,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=cfg.eod_mask_loss,
        create_attention_mask=False,
        path_to_cache=path_to_cache,
    )
    if cfg.data_path is not None:
        # A split of which nothing is asked is not built: it may well have no document at all.
        config.split_matrix = [data and data.part for data in splits]
    return config


def _one_blend(cfg: DatasetConfig, splits: Sequence[SplitData | None]) -> tuple[dict[str, Any], list[str]]:
    blend, split = next(data.blend for data in splits if data), required(parse_split(cfg.split))
    return {"blend": (blend.prefixes, blend_weights(blend)), "split": str(split)}, blend.prefixes


def _blend_per_split(splits: Sequence[SplitData | None]) -> tuple[dict[str, Any], list[str]]:
    blends = [data and (data.blend.prefixes, blend_weights(data.blend)) for data in splits]
    return {"blend_per_split": blends}, [prefix for blend in blends if blend for prefix in blend[0]]


def _on_every_rank() -> bool:
    return True


def _three(datasets: Iterable[Dataset | None]) -> Datasets:
    train, valid, test = datasets
    return train, valid, test
