"""The index of a `.bin`, its `.idx`, read and written byte by byte. Nothing in it is trusted before it is checked.

The format is megatron-core's: the magic, version 1 (uint64), a code for the type of a token id (uint8), the number n of
sequences and m of document bounds (uint64 each); then n lengths in tokens (int32), n places in the `.bin` in bytes
(int64) and m bounds of documents in sequences (int64), from 0 to n.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
# Of a token id, by code; 6 and 7 are floating-point numbers.
_TYPES = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
_FIRST_WIDE = 65500  # the vocabulary from which on megatron-core takes 4 bytes for an id
_BLOCK = 1 << 22  # entries checked at a time: the file may be larger than memory


@dataclass(frozen=True)
class Index:
    """The contents of an index; the arrays are memory-mapped, not read.

    Attributes:
        token_type: of an id in the `.bin`.
        lengths: the tokens of each sequence, int32.
        pointers: the byte of the `.bin` at which each begins, int64.
        documents: the first sequence of each document and, last, the number of sequences, int64.
    """

    token_type: np.dtype
    lengths: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray


def read_index(path: Path) -> Index:
    """Map an index that `index_problem` has found nothing wrong with."""
    with path.open("rb") as file:
        _, _, code, count, bounds = _HEADER.unpack(file.read(_HEADER.size))
    start = _HEADER.size
    return Index(
        token_type=_TYPES[code],
        lengths=np.memmap(path, np.dtype("<i4"), "r", start, (count,)),
        pointers=np.memmap(path, np.dtype("<i8"), "r", start + 4 * count, (count,)),
        documents=np.memmap(path, np.dtype("<i8"), "r", start + 12 * count, (bounds,)),
    )


def token_type(vocab_size: int) -> np.dtype:
    """The type in which megatron-core keeps ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size < _FIRST_WIDE else np.int32)


def write_index(path: Path, lengths: np.ndarray, of_token: np.dtype) -> None:
    """Write the index of documents that follow on each other, each a single sequence.

    Args:
        path: of the `.idx`.
        lengths: the tokens of each document, int32.
        of_token: the type of an id in the `.bin`.
    """
    code = next(code for code, known in _TYPES.items() if known == of_token)
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    ends = np.cumsum(lengths, dtype="<i8") * of_token.itemsize
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, 1, code, len(lengths), len(bounds)))
        for part in (lengths.astype("<i4"), ends - lengths.astype("<i8") * of_token.itemsize, bounds):
            file.write(part.tobytes())


def index_problem(path: Path, bin_bytes: int) -> str | None:
    """Why `path` cannot be the index of a `.bin` of `bin_bytes` bytes; None if it can."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(_MAGIC):
        return "is not a megatron index"
    size = path.stat().st_size
    if len(header) < _HEADER.size:
        return f"is cut off after {size} bytes"
    _, version, code, count, bounds = _HEADER.unpack(header)
    if version != 1:
        return f"has the version {version}, of which only 1 is known"
    if code not in _TYPES:
        return f"has the code {code} for the type of a token id, which is none of {', '.join(map(str, _TYPES))}"
    if size != (expected := _HEADER.size + 12 * count + 8 * bounds):
        return f"has {size} bytes, and {expected} by its own header"
    if count < 1 or bounds < 2:
        return f"has {count} sequences and {bounds} bounds of documents, so no document"
    index = read_index(path)
    return _sequence_problem(index, path.with_suffix(".bin"), bin_bytes) or _document_problem(index)


def _sequence_problem(index: Index, bin_path: Path, bin_bytes: int) -> str | None:
    """Sequences must follow on each other in the `.bin` from its first byte to its last."""
    token_bytes, reached = index.token_type.itemsize, 0
    for first in range(0, len(index.lengths), _BLOCK):
        part = index.lengths[first : first + _BLOCK]
        if len(wrong := np.flatnonzero(part <= 0)):
            return f"gives sequence {first + wrong[0]} a length of {part[wrong[0]]} tokens"
        ends = reached + np.cumsum(part, dtype=np.int64) * token_bytes
        begins = index.pointers[first : first + _BLOCK]
        wrong = np.flatnonzero(begins != ends - part * np.int64(token_bytes))
        if len(wrong):
            return f"has sequence {first + wrong[0]} begin at byte {begins[wrong[0]]}, where no other ends"
        reached = int(ends[-1])
    return None if reached == bin_bytes else f"describes {reached} bytes in {str(bin_path)!r}, which has {bin_bytes}"


def _document_problem(index: Index) -> str | None:
    documents, count = index.documents, len(index.lengths)
    if documents[0] != 0 or documents[-1] != count:
        return f"has documents from sequence {documents[0]} to {documents[-1]}, not from 0 to {count}"
    for first in range(0, len(documents) - 1, _BLOCK):
        edges = documents[first : first + _BLOCK + 1]
        if len(wrong := np.flatnonzero(edges[1:] < edges[:-1])):
            return f"has document {first + wrong[0]} end before it begins"
    return None
