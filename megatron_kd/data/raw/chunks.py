"""Records as they are in files, in chunks that worker processes take one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CHUNK_BYTES = 1 << 20

# A line of JSON, a line of text, a whole file of text, a row of a table.
Kind = Literal["json", "line", "file", "row"]


@dataclass(frozen=True)
class Cursor:
    """A place between two records of the inputs: a stopped run resumes from one.

    Attributes:
        input: which of the inputs, from 0.
        record: the number of its next record, from 0.
        offset: the byte that record begins at; 0 in tables, which are found by row.
    """

    input: int = 0
    record: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Record:
    """The bytes of a line or file, or the columns of a row; `where` is what errors call it."""

    where: str
    kind: Kind
    data: bytes | dict[str, Any]


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one input.

    Attributes:
        path: of the input.
        first: the number of the first record, from 0.
        data: of each record.
        file_bytes: how far in its file this chunk reaches beyond the one before it.
        after: where the next chunk begins.
    """

    path: str
    kind: Kind
    first: int
    data: list[Any]
    file_bytes: int
    after: Cursor

    def record(self, index: int) -> Record:
        """The record at `index` of this chunk. Lines are called by numbers from 1, as editors do, rows from 0."""
        number = self.first + index
        where = {"file": self.path, "row": f"{self.path}, row {number}"}.get(self.kind, f"{self.path}:{number + 1}")
        return Record(where, self.kind, self.data[index])
