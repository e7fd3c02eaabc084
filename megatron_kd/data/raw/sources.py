"""What `preprocess` reads: files of lines, files of text, Parquet files and folders of Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_kd.data.raw.chunks import CHUNK_BYTES, Chunk, Cursor, Kind
from megatron_kd.errors import ConfigError, InputError

JSON_SUFFIXES = (".jsonl", ".json")  # one JSON object a line, whichever of the two
TEXT_SUFFIXES = (".txt", ".py")  # one document a file or, when asked, a line
PARQUET_SUFFIXES = (".parquet",)
_END_BYTES = 1 << 16
_LONGEST_LINE = 1 << 28  # bytes; a file without line ends would fill the memory
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


class Source(Protocol):
    """One input, which is never read whole."""

    @property
    def size(self) -> int:
        """Its bytes on disk, for the progress."""

    @property
    def identity(self) -> dict[str, Any]:
        """What changes when the input does."""

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Its records from `start` on. Chunks begin where they would begin in a read from the start.

        Raises:
            InputError: a file that is damaged.
        """


@dataclass(frozen=True)
class TextSource:
    """A file of lines, or one whose whole text is one document."""

    path: Path
    kind: Kind

    @property
    def size(self) -> int:
        """See `Source`."""
        return self.path.stat().st_size

    @property
    def identity(self) -> dict[str, Any]:
        """See `Source`."""
        return file_identity(self.path)

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
                if len(line) > _LONGEST_LINE:
                    where = f"{self.path}:{start.record + len(lines) + 1}"
                    raise InputError(f"{where}: a line of more than {_LONGEST_LINE >> 20} MiB; a document a line?")
                lines.append(line)
                size += len(line)
                if size >= CHUNK_BYTES:
                    chunk = self._chunk(start, lines, size)
                    yield chunk
                    start, lines, size = chunk.after, [], 0
            if lines:
                yield self._chunk(start, lines, size)

    def _chunk(self, start: Cursor, data: list[bytes], size: int) -> Chunk:
        after = Cursor(start.input, start.record + len(data), start.offset + size)
        return Chunk(str(self.path), self.kind, start.record, data, size, after)


def open_sources(
    inputs: Sequence[str | Path], *, json_key: str | None, split_lines: bool = False
) -> tuple[list[Source], list[str]]:
    """The sources of `inputs`, and a line for each input that cannot be one.

    Args:
        inputs: files, and folders that `datasets` has saved.
        json_key: the column of a table that has the text; None: its columns are those of conversations.
        split_lines: whether each line of a text file is a document.
    """
    sources: list[Source] = []
    problems = [] if inputs else ["--input: give at least one file"]
    for path in map(Path, inputs):
        try:
            sources.append(_open(path, json_key, split_lines))
        except InputError as error:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
        except OSError as error:
            problems.append(f"--input {path}: {error.strerror or error}")
    return sources, problems


def read_chunks(sources: Sequence[Source], start: Cursor) -> Iterator[Chunk]:
    """The records of all sources, in order, from `start` on."""
    for number in range(start.input, len(sources)):
        yield from sources[number].chunks(start if number == start.input else Cursor(number))


def file_identity(path: Path) -> dict[str, Any]:
    """Name, size and date of a file, and a digest of both its ends."""
    about = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(about.st_size - _END_BYTES, 0))
        digest.update(file.read())
    return {"path": str(path), "bytes": about.st_size, "changed_ns": about.st_mtime_ns, "ends": digest.hexdigest()}


def _open(path: Path, json_key: str | None, split_lines: bool) -> Source:
    known = (*JSON_SUFFIXES, *TEXT_SUFFIXES, *PARQUET_SUFFIXES)
    if path.is_dir():
        from megatron_kd.data.raw.tables import open_saved_dataset

        return open_saved_dataset(path, json_key)
    if not path.is_file():
        raise InputError(f"--input {path}: there is no such file")
    if path.suffix not in known:
        raise InputError(f"--input {path}: suffix {path.suffix!r} is none of {', '.join(known)}")
    if not os.access(path, os.R_OK):
        raise InputError(f"--input {path}: not readable")
    if path.suffix in PARQUET_SUFFIXES:
        from megatron_kd.data.raw.tables import open_parquet

        return open_parquet(path, json_key)
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"--input {path}: is compressed ({name}); unpack it")
    if path.suffix in JSON_SUFFIXES:
        return TextSource(path, "json")
    if json_key is None:
        raise InputError(f"--input {path}: text has no conversations; with --chat give JSON lines or tables")
    return TextSource(path, "line" if split_lines else "file")
