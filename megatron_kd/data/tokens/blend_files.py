"""Which tokenised files make up a split, in what proportion, and whether they hold enough for one sample."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.data.tokens.index_file import index_problem
from megatron_kd.data.tokens.sidecar import size_problems
from megatron_kd.errors import ConfigError, InputError

SPLITS = ("train", "valid", "test")
SplitMatrix = list[tuple[float, float] | None]  # a split's first and last document as fractions of all

_FINGERPRINT_BYTES = 1 << 20
_SCANNED = 1 << 22  # token ids looked at in one go


@dataclass(frozen=True)
class Blend:
    """Path prefixes of `.bin/.idx` pairs from the configuration's `field`; `weights` None: by tokens."""

    field: str
    prefixes: list[str]
    weights: list[float] | None = None


def parse_blend(field: str, entries: Sequence[str | float], *, chat: bool = False) -> Blend:
    """Read a list of prefixes, or of alternating weights and prefixes; with `chat`, of conversations.

    Raises:
        ConfigError: a list that is neither, weights that are not positive, or files that are missing or damaged.
    """
    numbers = [_number(entry) for entry in entries]
    if not entries:
        raise ConfigError([f"{field} is empty: give at least one path prefix"])
    if all(number is None for number in numbers):
        blend = Blend(field, [str(entry) for entry in entries])
    elif len(entries) % 2 == 0 and None not in numbers[0::2] and not any(numbers[1::2]):
        blend = Blend(field, [str(entry) for entry in entries[1::2]], [float(entry) for entry in entries[0::2]])
    else:
        raise ConfigError([f"{field}={list(entries)}: give prefixes only, or alternate weights and prefixes"])
    problems = [f"{field}: weight {weight} is not positive" for weight in blend.weights or () if not weight > 0]
    problems += [problem for prefix in blend.prefixes for problem in _file_problems(field, prefix, chat)]
    if problems:
        raise ConfigError(problems)
    return blend


def no_data(split: str) -> str:
    """What to say of a split that is asked for and has no data."""
    return (
        f"dataset.{split}_data_path is not set: give path prefixes of tokenised text there or, for all splits, "
        "in dataset.data_path (`make corpus` makes the demo's), or ask for made-up data with dataset.mock=true"
    )


def split_matrix(split: str) -> SplitMatrix:
    """Where each of the three splits begins and ends, in fractions of the documents; None where it is empty.

    Raises:
        InputError: anything but one to three numbers, not all zero, with commas between them.
    """
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*(,\s*\d+(\.\d+)?\s*){0,2}", split) or not re.search(r"[1-9]", split):
        raise InputError(f"dataset.split={split!r}: give the shares of train, valid and test, such as '949,50,1'")
    return convert_split_vector_to_split_matrix(parse_and_normalize_split(split))


def check_tokens(blend: Blend, parts: SplitMatrix, samples: Sequence[int], seq_length: int) -> None:
    """Check that each file has, in each split that is asked for, the tokens of at least one sample.

    Raises:
        ConfigError: naming the field, the tokens there and the tokens needed.
    """
    problems = []
    for name, part, wanted in zip(SPLITS, parts, samples, strict=True):
        for prefix in blend.prefixes if wanted else ():
            tokens, documents = count_tokens(prefix, part or (0.0, 0.0))
            if tokens < seq_length + 1:
                problems.append(
                    f"{blend.field}: {prefix!r} has {tokens} tokens in {documents} documents for the {name} split, "
                    f"and one sample of model.seq_length={seq_length} needs {seq_length + 1}: give more data, "
                    f"shorter sequences or another dataset.split"
                )
    if problems:
        raise ConfigError(problems)


def count_tokens(prefix: str, part: tuple[float, float]) -> tuple[int, int]:
    """The tokens, and the documents, between two fractions of a `.bin/.idx` pair's documents."""
    lengths, _ = read_lengths(prefix)
    first, last = (round(edge * len(lengths)) for edge in part)
    return int(lengths[first:last].sum(dtype=np.int64)), last - first


def weights_by_tokens(blend: Blend) -> list[float] | None:
    """The blend's weights; where it has none, its files' tokens. None for a single file, which needs no blending."""
    if len(blend.prefixes) == 1:
        return None
    return blend.weights or [float(read_lengths(prefix)[0].sum(dtype=np.int64)) for prefix in blend.prefixes]


def fingerprint(prefixes: Sequence[str]) -> str:
    """A digest that changes when the files behind `prefixes` do: of their sizes and of both ends of each index."""
    digest = hashlib.sha256()
    for prefix in prefixes:
        size = Path(f"{prefix}.idx").stat().st_size
        digest.update(f"{size} {Path(f'{prefix}.bin').stat().st_size}\n".encode())
        with open(f"{prefix}.idx", "rb") as index:
            digest.update(index.read(_FINGERPRINT_BYTES))
            index.seek(max(size - _FINGERPRINT_BYTES, 0))
            digest.update(index.read())
    return digest.hexdigest()


def read_lengths(prefix: str) -> tuple[np.ndarray, int]:
    """The tokens of each document of a `.bin/.idx` pair (int32), and the bytes a token takes."""
    data = IndexedDataset(prefix)
    # A copy: the index unmaps its file when it goes, under every array that still looks into it.
    return data.sequence_lengths.copy(), DType.size(data.index.dtype)


def foreign_id(prefix: str, vocab_size: int) -> str | None:
    """The first document at `prefix` with an id that a vocabulary does not have, by file and number from 0."""
    data = IndexedDataset(prefix)
    tokens = np.memmap(f"{prefix}.bin", data.index.dtype, "r")
    for first in range(0, len(tokens), _SCANNED):
        part = tokens[first : first + _SCANNED]
        if len(wrong := np.flatnonzero((part < 0) | (part >= vocab_size))):
            place = int(first + wrong[0]) * tokens.itemsize
            document = int(np.searchsorted(data.index.sequence_pointers, place, side="right")) - 1
            return f"{prefix}.bin, document {document},"
    return None


def _number(entry: str | float) -> float | None:
    try:
        return float(entry)
    except ValueError:
        return None


def _file_problems(field: str, prefix: str, chat: bool) -> list[str]:
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    if missing := [path.name for path in (bin_path, idx_path) if not path.is_file()]:
        return [
            f"{field}: {prefix!r} has no {' and no '.join(missing)}: run `megatron-kd preprocess` "
            "(or `make corpus` for the demo's data), and give the path without .bin or .idx"
        ]
    if wrong := size_problems(prefix):
        return [f"{field}: {problem}" for problem in wrong]
    if bin_path.stat().st_size == 0:
        return [f"{field}: {str(bin_path)!r} is empty: run `megatron-kd preprocess` again"]
    if problem := _index_problem(prefix, _identity(bin_path), _identity(idx_path)):
        return [f"{field}: {str(idx_path)!r} {problem}: copy both files or run `megatron-kd preprocess` again"]
    return _mask_problems(field, prefix, int(read_lengths(prefix)[0].sum(dtype=np.int64))) if chat else []


@lru_cache(maxsize=256)
def _index_problem(prefix: str, bin_identity: tuple[int, ...], idx_identity: tuple[int, ...]) -> str | None:
    """`index_problem`, once for files that have not changed: a run asks several times."""
    return index_problem(Path(f"{prefix}.idx"), bin_identity[0])


def _identity(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _mask_problems(field: str, prefix: str, tokens: int) -> list[str]:
    mask = Path(f"{prefix}{LOSS_MASK}")
    if not mask.is_file():
        return [f"{field}: {prefix!r} has no {mask.name}: run `megatron-kd preprocess --chat` on conversations"]
    if mask.stat().st_size != tokens:
        return [
            f"{field}: {str(mask)!r} has {mask.stat().st_size} bytes for {tokens} tokens: "
            "copy it or run `megatron-kd preprocess --chat` again"
        ]
    return []
