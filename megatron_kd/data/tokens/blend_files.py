"""The tokenised files of a run's splits: found, whole, and with enough in them for one sample. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_kd.config.blend import SPLITS, Blend, SplitData, split_data
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.tokens.sidecar import SIDECAR_CURE, hash_problems
from megatron_kd.data.tokens.token_files import count_tokens, has_learnt_tokens, pair_problems
from megatron_kd.errors import ConfigError, InputError


def checked_split(cfg: DatasetConfig, name: str) -> SplitData:
    """The data of a split, with its files checked.

    Raises:
        InputError: no data is named for the split.
        ConfigError: a malformed blend or split, or files that are missing or damaged, all of them.
    """
    data = split_data(cfg, name)
    if data is None:
        raise InputError(
            f"dataset.{name}_data_path is not set: give path prefixes of tokenised text there or, for all splits, "
            "in dataset.data_path (`make corpus` makes the demo's), or ask for mock data with dataset.mock=true"
        )
    if problems := list(file_problems(data, chat=cfg.chat)):
        raise ConfigError(problems)
    return data


def checked_splits(cfg: DatasetConfig, samples: Sequence[int]) -> list[SplitData | None]:
    """`checked_split` of each of `SPLITS` of which `samples` asks for any; None for the others."""
    return [checked_split(cfg, name) if count else None for name, count in zip(SPLITS, samples, strict=True)]


def file_problems(data: SplitData, *, chat: bool) -> Iterator[Problem]:
    """Files of a blend that are missing or damaged."""
    for prefix in dict.fromkeys(data.blend.prefixes):
        yield from (Problem((Setting(data.field),), *found) for found in pair_problems(prefix, chat=chat))


def sample_problems(data: SplitData, seq_length: int, *, chat: bool) -> Iterator[Problem]:
    """Files of a blend that have nothing, or less than one sample, for a split; none of them is missing or damaged.

    Of conversations, whether there is something to learn in those of the split shows only when they are packed.
    """
    if chat:
        for prefixes in data.blend.packed_together:
            if not any(count_tokens(prefix, data.part)[1] for prefix in prefixes):
                why = f"{', '.join(map(repr, prefixes))} has no conversation for the {data.name} split"
                yield Problem((Setting(data.field),), why, "give more data or another dataset.split")
        return
    for prefix in dict.fromkeys(data.blend.prefixes):
        tokens, documents = count_tokens(prefix, data.part)
        if tokens < seq_length + 1:
            why = (
                f"{prefix!r} has {tokens} tokens in {documents} documents for the {data.name} split, and one sample of "
                f"model.seq_length={seq_length} needs {seq_length + 1}"
            )
            yield Problem((Setting(data.field),), why, "give more data, shorter sequences or another dataset.split")


def loss_mask_problems(data: SplitData) -> Iterator[Problem]:
    """Conversations of a split of which no token is to be learnt; their files are whole."""
    for prefixes in data.blend.packed_together:
        if not any(has_learnt_tokens(prefix, data.part) for prefix in prefixes):
            yield nothing_to_learn(data, prefixes, sum(count_tokens(prefix, data.part)[1] for prefix in prefixes))


def nothing_to_learn(data: SplitData, prefixes: Sequence[str], conversations: int) -> Problem:
    """The problem of conversations without a token that counts in the loss."""
    why = f"{', '.join(prefixes)!r} has nothing to learn for the {data.name} split, of {conversations} conversations"
    cure = "give more data, a greater model.seq_length or another dataset.split"
    return Problem((Setting(data.field),), why, cure)


def blend_weights(blend: Blend) -> list[float] | None:
    """The blend's weights; where it has none, its files' tokens. None for a single file, which needs no blending."""
    if len(blend.prefixes) == 1:
        return None
    return blend.weights or [float(count_tokens(prefix)[0]) for prefix in blend.prefixes]


def check_data_files(cfg: DatasetConfig, *, hashes: bool, remember: bool = True) -> None:
    """Check every tokenised file that `cfg` names: index and sizes and, with `hashes`, what `dataset.verify` asks for.

    With `remember`, hashes that were right are noted in the index cache, and not compared again.

    Raises:
        ConfigError: all that is wrong, naming field and file.
    """
    problems: list[Problem] = []
    for name in SPLITS if not cfg.mock else ():
        data = split_data(cfg, name)
        if data is None:
            continue
        wrong = list(file_problems(data, chat=cfg.chat))
        if not wrong and hashes and cfg.verify == "hash":
            wrong = _hash_problems(data, cfg.path_to_cache, remember)
        problems += wrong
    if problems:
        raise ConfigError(problems)


def _hash_problems(data: SplitData, cache: str | None, remember: bool) -> list[Problem]:
    found = (hash_problems(p, cache or f"{p}.cache", remember=remember) for p in data.blend.prefixes)
    return [Problem((Setting(data.field),), why, SIDECAR_CURE) for whys in found for why in whys]
