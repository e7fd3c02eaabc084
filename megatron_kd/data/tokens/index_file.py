"""What is wrong with an `.idx` file, from its bytes alone: nothing in it is believed before it has been checked.

The format is megatron-core's: the magic, version 1 (uint64), a code for the type of a token id (uint8), the number n of
sequences and m of document bounds (uint64 each); then n lengths in tokens (int32), n places in the `.bin` in bytes
(int64) and m bounds of documents in sequences (int64), from 0 to n.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}  # by code; 6 and 7 are floating-point numbers
_BLOCK = 1 << 22  # entries looked at in one go: the file may be larger than the memory


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
    if code not in _TOKEN_BYTES:
        return f"has the code {code} for the type of a token id, which is none of {', '.join(map(str, _TOKEN_BYTES))}"
    if size != (expected := _HEADER.size + 12 * count + 8 * bounds):
        return f"has {size} bytes, and {expected} by its own header"
    if count < 1 or bounds < 2:
        return f"has {count} sequences and {bounds} bounds of documents, so no document"
    return _content_problem(path, count, bounds, _TOKEN_BYTES[code], bin_bytes)


def _content_problem(path: Path, count: int, bounds: int, token_bytes: int, bin_bytes: int) -> str | None:
    start = _HEADER.size
    lengths = np.memmap(path, np.dtype("<i4"), "r", start, (count,))
    pointers = np.memmap(path, np.dtype("<i8"), "r", start + 4 * count, (count,))
    documents = np.memmap(path, np.dtype("<i8"), "r", start + 12 * count, (bounds,))
    reached = 0
    for first in range(0, count, _BLOCK):
        part = lengths[first : first + _BLOCK]
        if len(wrong := np.flatnonzero(part <= 0)):
            return f"gives sequence {first + wrong[0]} a length of {part[wrong[0]]} tokens"
        ends = reached + np.cumsum(part, dtype=np.int64) * token_bytes
        wrong = np.flatnonzero(pointers[first : first + _BLOCK] != ends - part * np.int64(token_bytes))
        if len(wrong):
            return f"has sequence {first + wrong[0]} begin at byte {pointers[first + wrong[0]]}, where no other ends"
        reached = int(ends[-1])
    if reached != bin_bytes:
        return f"tells of {reached} bytes in {str(path.with_suffix('.bin'))!r}, which has {bin_bytes}"
    if documents[0] != 0 or documents[-1] != count:
        return f"has documents from sequence {documents[0]} to {documents[-1]}, not from 0 to {count}"
    for first in range(0, bounds - 1, _BLOCK):
        edges = documents[first : first + _BLOCK + 1]
        if len(wrong := np.flatnonzero(edges[1:] < edges[:-1])):
            return f"has document {first + wrong[0]} end before it begins"
    return None
