"""The inputs of `preprocess`: files of lines, files of text, Parquet files and folders of Hugging Face `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kd.config.hub_names import absent, looks_like_hub_name
from megatron_kd.data.raw.chunks import Chunk, Cursor
from megatron_kd.data.raw.sources import Source, TextSource
from megatron_kd.errors import ConfigError, InputError

_JSON = (".jsonl", ".json")  # one JSON object a line, whichever of the two
_TEXT = (".txt", ".py")  # one document a file or, when asked, a line
_PARQUET = (".parquet",)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


def open_sources(
    inputs: Sequence[str | Path], *, json_key: str | None, split_lines: bool = False
) -> tuple[list[Source], list[str]]:
    """The sources of `inputs`, and a line for each input that cannot be one.

    Args:
        inputs: files, and folders that `datasets` has saved.
        json_key: the column of a table that has the text; None: its rows are conversations.
        split_lines: whether each line of a text file is a document.
    """
    sources: list[Source] = []
    problems = [] if inputs else ["--input: give at least one file"]
    for path in map(Path, inputs):
        try:
            sources.append(_open(path, json_key, split_lines))
        except InputError as error:
            problems += error.lines if isinstance(error, ConfigError) else [str(error)]
        except OSError as error:
            problems.append(f"--input {path}: {error.strerror or error}")
    return sources, problems


def read_chunks(sources: Sequence[Source], start: Cursor) -> Iterator[Chunk]:
    """The records of all sources, in order, from `start` on."""
    for number in range(start.input, len(sources)):
        yield from sources[number].chunks(start if number == start.input else Cursor(number))


def _open(path: Path, json_key: str | None, split_lines: bool) -> Source:
    if path.is_dir() or path.suffix in _PARQUET:
        return _open_table(path, json_key)
    known = (*_JSON, *_TEXT, *_PARQUET)
    _refuse_unreadable(path)
    if path.suffix not in known:
        raise InputError(f"--input {path}: suffix {path.suffix!r} is none of {', '.join(known)}")
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"--input {path}: is compressed ({name}); unpack it")
    if path.suffix in _JSON:
        return TextSource(path, "json")
    if json_key is None:
        raise InputError(f"--input {path}: text has no conversations; with --chat give JSON lines or tables")
    return TextSource(path, "line" if split_lines else "file")


def _open_table(path: Path, json_key: str | None) -> Source:
    from megatron_kd.data.raw.tables import open_parquet, open_saved_dataset  # with pyarrow, which few inputs need

    if path.is_dir():
        return open_saved_dataset(path, json_key)
    _refuse_unreadable(path)
    return open_parquet(path, json_key)


def _refuse_unreadable(path: Path) -> None:
    if not path.is_file():
        why, cure = absent(path, "dataset", "file") if looks_like_hub_name(path) else ("there is no such file", "")
        raise InputError(f"--input {path}: " + "; ".join(filter(None, (why, cure))))
    if not os.access(path, os.R_OK):
        raise InputError(f"--input {path}: not readable")
