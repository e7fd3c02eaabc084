"""A pair of files of token ids, PREFIX.bin and PREFIX.idx: whether it can be read, and what it holds. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_kd.config.hub_names import LIKE_A_HUB_NAME, absent, looks_like_hub_name
from megatron_kd.config.text_files import LOSS_MASK, is_text_file
from megatron_kd.config.values import show
from megatron_kd.data.tokens.index_file import index_problem, read_index
from megatron_kd.data.tokens.sidecar import SIDECAR_CURE, size_problems

FOREIGN_CURE = "set tokenizer.tokenizer_model to that one, or run `megatron-kd preprocess` again"
_FINGERPRINT_BYTES = 1 << 20
_SCANNED = 1 << 22  # token ids checked at a time


def missing_files(prefix: str) -> list[str]:
    """Those of the two files that are not there."""
    return [prefix + ending for ending in (".bin", ".idx") if not os.path.isfile(prefix + ending)]


def pair_problems(prefix: str, *, chat: bool) -> list[tuple[str, str]]:
    """Problems of the files at `prefix`, except in the ids themselves, each with its cure.

    With `chat`, their loss mask is checked too.
    """
    if missing := missing_files(prefix):
        return [_absent(prefix, missing)]
    if wrong := size_problems(prefix):
        return [(why, SIDECAR_CURE) for why in wrong]
    bin_path, idx_path = Path(f"{prefix}.bin"), _index(prefix)
    if bin_path.stat().st_size == 0:
        return [(f"{str(bin_path)!r} is empty", "run `megatron-kd preprocess` again")]
    if why := _index_problem(prefix, _identity(bin_path), _identity(idx_path)):
        return [(f"{str(idx_path)!r} {why}", "copy both files or run `megatron-kd preprocess` again")]
    return _mask_problems(prefix, bin_path.stat().st_size // read_index(idx_path).token_type.itemsize) if chat else []


def read_lengths(prefix: str) -> np.ndarray:
    """The tokens of each document, int32. As in megatron-core's own splits, a sequence of the index is a document."""
    return read_index(_index(prefix)).lengths


def count_tokens(prefix: str, part: tuple[float, float] = (0.0, 1.0)) -> tuple[int, int]:
    """The tokens, and the documents, between two fractions of the documents."""
    lengths = read_lengths(prefix)
    first, last = (round(edge * len(lengths)) for edge in part)
    return int(lengths[first:last].sum(dtype=np.int64)), last - first


def has_learnt_tokens(prefix: str, part: tuple[float, float]) -> bool:
    """Whether the loss mask has a 1 between two fractions of the conversations at `prefix`."""
    index = read_index(_index(prefix))
    first, last = (round(edge * len(index.lengths)) for edge in part)
    if first == last:
        return False
    start = int(index.pointers[first]) // index.token_type.itemsize
    stop = int(index.pointers[last - 1]) // index.token_type.itemsize + int(index.lengths[last - 1])
    mask = np.memmap(f"{prefix}{LOSS_MASK}", np.uint8, "r")
    return any(mask[at : min(at + _SCANNED, stop)].any() for at in range(start, stop, _SCANNED))


def fingerprint(prefixes: Sequence[str]) -> str:
    """A digest that changes when the files behind `prefixes` do: of their sizes and of both ends of each index."""
    digest = hashlib.sha256()
    for prefix in prefixes:
        size = _index(prefix).stat().st_size
        digest.update(f"{size} {Path(f'{prefix}.bin').stat().st_size}\n".encode())
        with _index(prefix).open("rb") as index:
            digest.update(index.read(_FINGERPRINT_BYTES))
            index.seek(max(size - _FINGERPRINT_BYTES, 0))
            digest.update(index.read())
    return digest.hexdigest()


@dataclass(frozen=True)
class ForeignId:
    """A token id that a vocabulary does not have, and where it is."""

    place: str
    token: int
    vocab_size: int

    def __str__(self) -> str:
        return (
            f"{self.place} holds token id {self.token} and the tokenizer has {self.vocab_size} ids: it was tokenised "
            "with another tokenizer, or damaged"
        )


def foreign_id(prefix: str, vocab_size: int) -> ForeignId | None:
    """The first id at `prefix` that a vocabulary does not have, with its file and document, counted from 0."""
    index = read_index(_index(prefix))
    tokens = np.memmap(f"{prefix}.bin", index.token_type, "r")
    for first in range(0, len(tokens), _SCANNED):
        part = tokens[first : first + _SCANNED]
        if len(wrong := np.flatnonzero((part < 0) | (part >= vocab_size))):
            place = int(first + wrong[0]) * tokens.itemsize
            document = int(np.searchsorted(index.pointers, place, side="right")) - 1
            return ForeignId(f"{prefix}.bin, document {document},", int(part[wrong[0]]), vocab_size)
    return None


def _index(prefix: str) -> Path:
    return Path(f"{prefix}.idx")


@lru_cache(maxsize=256)
def _index_problem(prefix: str, bin_identity: tuple[int, ...], idx_identity: tuple[int, ...]) -> str | None:
    """`index_problem`, once for files that have not changed: a run asks several times."""
    return index_problem(_index(prefix), bin_identity[0])


def _identity(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _absent(prefix: str, missing: list[str]) -> tuple[str, str]:
    if is_text_file(prefix):
        return f"{show(prefix)} is text, not the prefix of tokenised files", "set dataset.text_path to it"
    if prefix.endswith((".bin", ".idx")):
        return f"{show(prefix)} must be the prefix of both files", f"write {show(prefix[:-4])}"
    cure = f"make them with `megatron-kd preprocess --input TEXT --output-prefix {show(prefix)} --tokenizer DIR`"
    cure += " (those of the tiny recipes with `make corpus`)"
    if looks_like_hub_name(prefix):
        cure += f"; {show(prefix)} {LIKE_A_HUB_NAME}: {absent(prefix, 'dataset')[1]} as TEXT"
    return f"{' and '.join(map(show, missing))} not found", cure


def _mask_problems(prefix: str, tokens: int) -> list[tuple[str, str]]:
    mask = Path(f"{prefix}{LOSS_MASK}")
    if not mask.is_file():
        return [(f"{prefix!r} has no {mask.name}", "run `megatron-kd preprocess --chat` on conversations")]
    if mask.stat().st_size != tokens:
        cure = "copy it or run `megatron-kd preprocess --chat` again"
        return [(f"{str(mask)!r} has {mask.stat().st_size} bytes for {tokens} tokens", cure)]
    return []
