"""The files that a configuration names, read: tokenizers, tokenised data, and the first records of a text.

A run takes the first two steps itself, before its ranks meet. The others it comes to later; `validate` finds all of
them, in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from megatron_kd.checks import Group, problems
from megatron_kd.config.blend import SPLITS, SplitData, split_data
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import shared_vocab_size
from megatron_kd.config.problem import Problem
from megatron_kd.data.preprocessing.run_text import check_first_records
from megatron_kd.data.tokens.blend_files import check_data_files, loss_mask_problems
from megatron_kd.data.tokens.shared_ids import ASSUMED, is_assumed, teacher_tokenizer_problems
from megatron_kd.data.tokens.sidecar import ENDING
from megatron_kd.data.tokens.token_files import FOREIGN_CURE, foreign_id
from megatron_kd.data.tokens.tokenizer import Tokenizer, load_tokenizer
from megatron_kd.errors import ConfigError, InputError

READ_AT_MOST = 1 << 29  # bytes of data whose content `validate` reads: seconds, even from a slow disk


@dataclass(frozen=True)
class Inspection:
    """Problems of the files, and questions that they leave open.

    Attributes:
        problems: a run would be refused, or end, because of them.
        unchecked: what only a run can tell, a clause each.
    """

    problems: list[Problem]
    unchecked: list[str]


def checked_tokenizer(cfg: ConfigContainer) -> Tokenizer:
    """The run's tokenizer, of which the models are known to have all ids.

    Raises:
        InputError: it cannot be loaded.
        ConfigError: problems that show once the tokenizers are read.
    """
    settings = cfg.tokenizer
    if cfg.dataset.mock and settings.tokenizer_model is None:
        settings = replace(settings, tokenizer_type="null", vocab_size=settings.vocab_size or shared_vocab_size(cfg))
    tokenizer = load_tokenizer(settings)
    of_sizes = problems(cfg, tokenizer_vocab_size=tokenizer.vocab_size, groups={Group.VOCABULARY})
    if wrong := of_sizes or teacher_tokenizer_problems(cfg, tokenizer):
        raise ConfigError(wrong)
    return tokenizer


def tokenizer_size(cfg: ConfigContainer) -> int | None:
    """The ids of the tokenizer that a configuration names; None where it names none that can be read."""
    try:
        return load_tokenizer(cfg.tokenizer).vocab_size
    except InputError:
        return None


def inspect(cfg: ConfigContainer) -> Inspection:
    """Read what a configuration without `problems` names.

    Data of more than `READ_AT_MOST` bytes is checked by sizes and index alone.
    """
    found: list[Problem] = []
    tokenizer = _collected(lambda: checked_tokenizer(cfg), found)
    sizes = {prefix: os.path.getsize(f"{prefix}.bin") for data in _splits(cfg) for prefix in data.blend.prefixes}
    small = sum(sizes.values()) <= READ_AT_MOST
    _collected(lambda: check_data_files(cfg.dataset, hashes=small, remember=False), found)
    if tokenizer is not None and not found:
        found += [*_ids(cfg, tokenizer, small), *_masks(cfg)]
        if cfg.dataset.text_path is not None:
            text, chat = cfg.dataset.text_path, cfg.dataset.chat
            _collected(lambda: check_first_records(text, tokenizer, chat=chat), found)
    return Inspection(found, list(_unchecked(cfg, sizes, small)))


def _collected(check: Callable[[], Tokenizer | None], found: list[Problem]) -> Tokenizer | None:
    """The value of a check; None where it raises, with its problems in `found`."""
    try:
        return check()
    except ConfigError as error:
        found += [p if isinstance(p, Problem) else Problem((), str(p)) for p in error.problems]
    except InputError as error:
        found.append(Problem((), str(error)))
    return None


def _splits(cfg: ConfigContainer) -> Iterator[SplitData]:
    """The tokenised data of each split that has some."""
    for name in SPLITS if not cfg.dataset.mock else ():
        data = split_data(cfg.dataset, name)
        if data is not None:
            yield data


def _ids(cfg: ConfigContainer, tokenizer: Tokenizer, small: bool) -> Iterator[Problem]:
    """Ids that the tokenizer does not have, in files that are small enough to be read."""
    prefixes = dict.fromkeys(prefix for data in _splits(cfg) for prefix in data.blend.prefixes)
    for prefix in prefixes if small else ():
        if (wrong := foreign_id(prefix, tokenizer.vocab_size)) is not None:
            yield Problem((), str(wrong), FOREIGN_CURE)


def _masks(cfg: ConfigContainer) -> Iterator[Problem]:
    for data in _splits(cfg) if cfg.dataset.chat else ():
        if data.name == "train" or (data.name == "valid" and cfg.validation.eval_iters):
            yield from loss_mask_problems(data)


def _unchecked(cfg: ConfigContainer, sizes: dict[str, int], small: bool) -> Iterator[str]:
    yield "memory of the devices (`megatron-kd plan` estimates it)"
    yield "whether the ranks reach each other"
    if is_assumed(cfg):
        yield f"whether an id is one token to both models: {ASSUMED}"
    if not small:
        hashed = [prefix for prefix in sizes if os.path.exists(prefix + ENDING)]
        what = "ids and hashes" if hashed and cfg.dataset.verify == "hash" else "ids"
        yield f"{what} of {len(sizes)} data files of {sum(sizes.values()) / 1e9:.1f} GB"
    if cfg.dataset.text_path is not None:
        yield "records of the text after the first ones"
