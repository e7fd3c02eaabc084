"""An input of `preprocess` as a source of records, and the sources that are files of text."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.data.raw.chunks import CHUNK_BYTES, Chunk, Cursor, Kind
from megatron_kd.errors import InputError

_END_BYTES = 1 << 16
_LONGEST_LINE = 1 << 28  # bytes; a file without line ends would fill the memory


@dataclass(frozen=True)
class Source(ABC):
    """One input, which is never read whole: a file, unless a subclass says otherwise."""

    path: Path

    @property
    def size(self) -> int:
        """Its bytes on disk, for the progress."""
        return self.path.stat().st_size

    @property
    def identity(self) -> dict[str, Any]:
        """An identity that changes whenever the input does."""
        return file_identity(self.path)

    @abstractmethod
    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Its records from `start` on. Chunks begin where they would begin in a read from the start.

        Raises:
            InputError: a file that is damaged.
        """


@dataclass(frozen=True)
class TextSource(Source):
    """A file of lines, or one whose whole text is one document."""

    kind: Kind

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """See `Source`."""
        with self.path.open("rb") as file:
            if self.kind == "file":
                if start.record == 0:
                    data = file.read()
                    yield self._chunk(start, [data], len(data))
                return
            file.seek(start.offset)
            lines: list[bytes] = []
            size = 0
            for line in iter(lambda: file.readline(_LONGEST_LINE + 1), b""):
                self._check_length(line, start.record + len(lines) + 1)
                lines.append(line)
                size += len(line)
                if size >= CHUNK_BYTES:
                    chunk = self._chunk(start, lines, size)
                    yield chunk
                    start, lines, size = chunk.after, [], 0
            if lines:
                yield self._chunk(start, lines, size)

    def _check_length(self, line: bytes, number: int) -> None:
        if len(line) > _LONGEST_LINE:
            most = f"{_LONGEST_LINE >> 20} MiB"
            raise InputError(f"{self.path}:{number}: a line of more than {most}; write one document per line")

    def _chunk(self, start: Cursor, data: list[bytes], size: int) -> Chunk:
        after = Cursor(start.input, start.record + len(data), start.offset + size)
        return Chunk(str(self.path), self.kind, start.record, data, size, after)


def file_identity(path: Path) -> dict[str, Any]:
    """Name, size and date of a file, and a digest of both its ends."""
    about = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(about.st_size - _END_BYTES, 0))
        digest.update(file.read())
    return {"path": str(path), "bytes": about.st_size, "changed_ns": about.st_mtime_ns, "ends": digest.hexdigest()}
