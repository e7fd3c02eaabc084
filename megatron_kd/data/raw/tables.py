"""Tables as sources: Parquet files, and folders that Hugging Face `datasets` has saved.

Of a table only the columns that are asked for are read, some rows at a time.

A column of objects has the keys of all its rows: where a row lacks one, the table has a null. The nulls in rows of
conversations are left out again, so that a table says what the lines that it was made of say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_kd.data.raw.chat_keys import FORMATS_SHOWN, IGNORED, format_of
from megatron_kd.data.raw.chunks import CHUNK_BYTES, Chunk, Cursor
from megatron_kd.data.raw.documents import read_json
from megatron_kd.data.raw.sources import Source, file_identity
from megatron_kd.errors import InputError
from megatron_kd.messages import first_line

_MOST_ROWS = 1 << 16  # of a chunk


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, and whether their rows are conversations."""

    names: tuple[str, ...]
    are_chats: bool

    def rows(self, table: Any) -> list[dict[str, Any]]:
        """The rows of an Arrow table or batch."""
        rows = table.to_pylist()
        return [as_in_lines(row, pa.struct(table.schema)) for row in rows] if self.are_chats else rows


@dataclass(frozen=True)
class ParquetSource(Source):
    """A Parquet file."""

    columns: Columns
    rows_a_chunk: int

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """See `Source`."""
        try:
            with pq.ParquetFile(self.path) as file:
                yield from self._chunks(file, start)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.path}: not a readable Parquet file ({first_line(error)})") from error

    def _chunks(self, file: pq.ParquetFile, start: Cursor) -> Iterator[Chunk]:
        first, total = 0, file.metadata.num_rows
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows <= start.record:  # done before
                first += rows
                continue
            # Threads of Arrow's own would be forked in mid-work when worker processes start.
            batches = file.iter_batches(self.rows_a_chunk, [group], list(self.columns.names), use_threads=False)
            for batch in batches:
                if first >= start.record:
                    yield _chunk(self.path, start.input, first, self.columns.rows(batch), self.size, total)
                first += batch.num_rows


@dataclass(frozen=True)
class SavedDataset(Source):
    """A folder that `datasets.Dataset.save_to_disk` has left; its Arrow files are mapped, not read."""

    columns: Columns
    dataset: Any  # of Hugging Face `datasets`, giving Arrow tables
    rows_a_chunk: int

    @property
    def size(self) -> int:
        """See `Source`."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    @property
    def identity(self) -> dict[str, Any]:
        """See `Source`."""
        return {"path": str(self.path), "files": [file_identity(file) for file in sorted(self.path.iterdir())]}

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """See `Source`."""
        total = len(self.dataset)
        for first in range(start.record, total, self.rows_a_chunk):
            try:
                rows = self.columns.rows(self.dataset[first : first + self.rows_a_chunk])
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(f"{self.path}, row {first}: cannot be read ({first_line(error)})") from error
            yield _chunk(self.path, start.input, first, rows, self.size, total)


def open_parquet(path: Path, json_key: str | None) -> Source:
    """A Parquet file whose column `json_key` has the text; None: whose rows are conversations.

    Raises:
        InputError: the file is not Parquet, or lacks such a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, about = file.schema_arrow, file.metadata
            rows, size = about.num_rows, sum(about.row_group(g).total_byte_size for g in range(about.num_row_groups))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"--input {path}: not a readable Parquet file ({first_line(error)})") from error
    return ParquetSource(path, _columns(path, schema, json_key), _rows_a_chunk(rows, size))


def open_saved_dataset(path: Path, json_key: str | None) -> Source:
    """The same of a folder.

    Raises:
        InputError: a folder that `datasets` has not saved, one of several splits, or one without such a column.
    """
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(str(folder) for folder in path.iterdir() if folder.is_dir()))
        raise InputError(f"--input {path}: has several splits; name one: {splits}")
    if not (path / "state.json").is_file():
        raise InputError(f"--input {path}: a folder, and none that `datasets` has saved; name its files")
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_from_disk(str(path), keep_in_memory=False)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--input {path}: `datasets` cannot load it ({first_line(error)})") from error
    columns = _columns(path, dataset.features.arrow_schema, json_key)
    chosen = dataset.select_columns(list(columns.names)).with_format("arrow")
    return SavedDataset(path, columns, chosen, _rows_a_chunk(len(dataset), dataset.data.nbytes))


def as_in_lines(value: Any, kind: pa.DataType) -> Any:
    """A value of an Arrow type as a line of JSON would have it: without the keys that are null, at any depth.

    A value of the type `Json` of `datasets`, for columns of several types, is a string of JSON in the table. Its nulls
    stay, and so do the items of a list that are null.
    """
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return read_json(value)
    if isinstance(kind, pa.StructType):
        return {item.name: as_in_lines(value[item.name], item.type) for item in kind if value[item.name] is not None}
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return [as_in_lines(item, kind.value_type) for item in value]
    return value


def _columns(path: Path, schema: pa.Schema, json_key: str | None) -> Columns:
    have = ", ".join(map(repr, schema.names)) or "none"
    if json_key is None:
        if format_of(schema.names) is None:
            raise InputError(f"--input {path}: no columns {FORMATS_SHOWN} (it has {have})")
        # All others are read: a row that says more than its conversation is refused by the key.
        return Columns(tuple(name for name in schema.names if name not in IGNORED), True)
    if json_key not in schema.names:
        raise InputError(f"--input {path}: no column {json_key!r} (it has {have}): name the right one with --json-key")
    kind = schema.field(json_key).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"--input {path}: column {json_key!r} is {kind}, not text: name another with --json-key")
    return Columns((json_key,), False)


def _rows_a_chunk(rows: int, size: int) -> int:
    """The number of rows in a chunk of about `CHUNK_BYTES`."""
    return min(max(rows * CHUNK_BYTES // max(size, 1), 1), _MOST_ROWS)


def _chunk(path: Path, source: int, first: int, rows: Sequence[dict[str, Any]], size: int, total: int) -> Chunk:
    after = first + len(rows)
    reached = size * after // total - size * first // total
    return Chunk(str(path), "row", first, list(rows), reached, Cursor(source, after))
