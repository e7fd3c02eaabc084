"""The tokenised files of a run's splits: found, whole, and with enough in them for one sample. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_kd.config.blend import SPLITS, Blend, SplitData, split_data
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.tokens.sidecar import hash_problems
from megatron_kd.data.tokens.token_files import count_tokens, pair_problems
from megatron_kd.errors import ConfigError, InputError


def checked_split(cfg: DatasetConfig, name: str) -> SplitData:
    """What a split is read from, with its files checked.

    Raises:
        InputError: no data is named for the split.
        ConfigError: a malformed blend or split, or files that are missing or damaged, all of them.
    """
    data = split_data(cfg, name)
    if data is None:
        raise InputError(
            f"dataset.{name}_data_path is not set: give path prefixes of tokenised text there or, for all splits, "
            "in dataset.data_path (`make corpus` makes the demo's), or ask for made-up data with dataset.mock=true"
        )
    if problems := list(file_problems(data, chat=cfg.chat)):
        raise ConfigError(problems)
    return data


def checked_splits(cfg: DatasetConfig, samples: Sequence[int]) -> list[SplitData | None]:
    """`checked_split` of each of `SPLITS` of which `samples` asks for any; None for the others."""
    return [checked_split(cfg, name) if count else None for name, count in zip(SPLITS, samples, strict=True)]


def file_problems(data: SplitData, *, chat: bool) -> Iterator[str]:
    """What is wrong with the files of a blend."""
    for prefix in dict.fromkeys(data.blend.prefixes):
        yield from (f"{data.field}: {problem}" for problem in pair_problems(prefix, chat=chat))


def token_problems(data: SplitData, seq_length: int) -> Iterator[str]:
    """Each file of a blend must have, in the split, the tokens of at least one sample."""
    for prefix in dict.fromkeys(data.blend.prefixes):
        tokens, documents = count_tokens(prefix, data.part)
        if tokens < seq_length + 1:
            yield (
                f"{data.field}: {prefix!r} has {tokens} tokens in {documents} documents for the {data.name} split, "
                f"and one sample of model.seq_length={seq_length} needs {seq_length + 1}: give more data, "
                f"shorter sequences or another dataset.split"
            )


def blend_weights(blend: Blend) -> list[float] | None:
    """The blend's weights; where it has none, its files' tokens. None for a single file, which needs no blending."""
    if len(blend.prefixes) == 1:
        return None
    return blend.weights or [float(count_tokens(prefix)[0]) for prefix in blend.prefixes]


def check_data_files(cfg: DatasetConfig, *, hashes: bool) -> None:
    """Check every tokenised file that `cfg` names: index and sizes and, with `hashes`, what `dataset.verify` asks for.

    Raises:
        ConfigError: all that is wrong, naming field and file.
    """
    problems: list[str] = []
    for name in SPLITS if not cfg.mock else ():
        data = split_data(cfg, name)
        if data is None:
            continue
        wrong = list(file_problems(data, chat=cfg.chat))
        if not wrong and hashes and cfg.verify == "hash":
            wrong = _hash_problems(data, cfg.path_to_cache)
        problems += wrong
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _hash_problems(data: SplitData, cache: str | None) -> list[str]:
    found = (hash_problems(prefix, cache or f"{prefix}.cache") for prefix in data.blend.prefixes)
    return [f"{data.field}: {problem}" for problems in found for problem in problems]
