"""Headers of safetensors files: which tensors a file has, and where. No tensor is read, and torch is not needed.

A file begins with 8 bytes of length and that much JSON: names, dtypes, shapes and offsets. Its size must be the one
that the header implies.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.other_folders import LFS_POINTER

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # what the safetensors library accepts
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a file, its shape and its dtype as safetensors names it; `start` is its first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * _BYTES[self.dtype]


def header(path: Path) -> dict[str, Entry]:
    """The entries of one file by name.

    Raises:
        ConfigError: a file that is missing, truncated or not safetensors.
    """
    try:
        about = path.stat()
        # Several checks of a start need it, and a file that was not touched has the same one.
        return _header(path, about.st_size, about.st_mtime_ns)
    except FileNotFoundError as error:
        raise ConfigError([f"{path.name} is missing; copy it again"]) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path.name} is not a safetensors file ({error}); copy it again"]) from error


def are_copies(one: Entry, other: Entry) -> bool:
    """Whether two tensors are the same bytes, by samples from their first to their last; small ones by all of them."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    step = max(_SAMPLE_BYTES, (one.size - _SAMPLE_BYTES) // _SAMPLES)
    with one.file.open("rb") as first, other.file.open("rb") as second:
        return all(_bytes(first, one, at) == _bytes(second, other, at) for at in (*range(0, one.size, step), one.size))


def _bytes(file: Any, entry: Entry, at: int) -> bytes:
    """A sample from byte `at` of a tensor on, or its last one."""
    at = max(0, min(at, entry.size - _SAMPLE_BYTES))
    file.seek(entry.start + at)
    data: bytes = file.read(min(_SAMPLE_BYTES, entry.size - at))
    return data


@lru_cache(maxsize=4096)
def _header(path: Path, size: int, changed_ns: int) -> dict[str, Entry]:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start + file.read(len(LFS_POINTER) - 8) == LFS_POINTER.encode():
            raise ConfigError([f"{path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` there"])
        if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise ConfigError([f"{path.name} is truncated or not a safetensors file ({size} bytes); copy it again"])
        file.seek(8)
        found = {name: value for name, value in json.loads(file.read(length)).items() if name != "__metadata__"}
    entries = {name: _entry(path, value, 8 + length) for name, value in found.items()}
    expected = max((entry.start + entry.size for entry in entries.values()), default=8 + length)
    if size != expected:
        raise ConfigError([f"{path.name} has {size} bytes, by its header it must have {expected}; copy it again"])
    return entries


def _entry(path: Path, value: dict[str, Any], data: int) -> Entry:
    shape, (start, end) = tuple(value["shape"]), value["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError("sizes must be whole numbers")
    if end - start != math.prod(shape) * _BYTES[value["dtype"]]:
        raise ValueError(f"a tensor of {value['dtype']} and shape {shape} cannot take {end - start} bytes")
    return Entry(path, value["dtype"], shape, data + start)
