"""Files that are on the disk, with a known hash, when the function that writes them returns."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from megatron_kd.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")

_BUFFER = 1 << 20  # bytes
_READ_WHOLE, _PIECE, _PIECES = 1 << 26, 1 << 12, 1 << 10


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and the SHA-256 of its content, in hexadecimal."""

    size: int
    sha256: str


class HashedFile(io.FileIO):
    """A new file that hashes its content while it is written, so that hashing needs no second read.

    Attributes:
        failure: the first error of a write, kept because libraries that write to Python streams from C++ replace it
            with an error of their own.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "xb")  # never over an existing file
        self.sha256, self.size = hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write as much of `data` as the disk takes, and hash that part."""
        try:
            count = super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.sha256.update(memoryview(data).cast("B")[:count])
        self.size += count
        return count


def write_file(path: Path, fill: Callable[[BinaryIO], Result]) -> tuple[Result, FileRecord]:
    """Write a new file and wait until it is on the disk.

    Args:
        path: must not exist.
        fill: writes the content, front to back.

    Returns:
        The result of `fill`, and the file's record.

    Raises:
        OSError: the disk's own, with its `errno`.
    """
    raw = HashedFile(path)
    try:
        with io.BufferedWriter(raw, _BUFFER) as stream:
            result = fill(stream)
            stream.flush()
            os.fsync(raw.fileno())
    except Exception as error:
        if raw.failure is not None and raw.failure is not error:
            raise raw.failure from error
        raise
    return result, FileRecord(raw.size, raw.sha256.hexdigest())


def write_text(path: Path, text: str) -> FileRecord:
    """`write_file` of a text, as UTF-8."""
    return write_file(path, lambda stream: stream.write(text.encode()))[1]


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: readers see the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    write_text(partial, text)
    os.replace(partial, path)
    sync(path.parent)


def taken(path: Path, cure: str = "name another folder") -> str | None:
    """Why nothing may be written at `path`: it exists, if only as a dangling link. None if it is free."""
    return f"{path}: is already there, and is never overwritten; {cure}" if os.path.lexists(path) else None


def refuse_existing(path: Path) -> None:
    """Refuse to overwrite an existing `path`.

    Raises:
        InputError: see `taken`.
    """
    if problem := taken(path):
        raise InputError(problem)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def why_not(path: Path, record: FileRecord) -> str | None:
    """Why a file is not the one that `record` describes; None if it is."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if found.st_size != record.size:
            return f"has {found.st_size} bytes, not the {record.size} that were written"
        if sha256_of(path) != record.sha256:
            return "has other content than was written (its SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    read_into(digest, path)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """A digest of a file's content: of all of it or, above 64 MB, of its size and of 1,024 pieces spread over it."""
    size = os.path.getsize(path)
    if size <= _READ_WHOLE:
        return sha256_of(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb", buffering=0) as file:
        for piece in range(_PIECES):
            file.seek((size - _PIECE) * piece // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def read_into(digest: hashlib._Hash, path: Path) -> None:
    """Hash a file's content, after what `digest` has hashed already."""
    buffer = memoryview(bytearray(_BUFFER))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
