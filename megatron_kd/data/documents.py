"""Files to documents to token ids, in chunks that worker processes take one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kd.data.tokenizer import Tokenizer
from megatron_kd.errors import InputError

JSON_SUFFIXES = (".jsonl", ".json")  # one JSON object a line, whichever of the two
TEXT_SUFFIXES = (".txt", ".py")  # one document a file or, when asked, a line
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """The bytes of one document as they are in a file; `line` counts from 1, 0 is the whole file."""

    path: str
    line: int
    data: bytes


@dataclass(frozen=True)
class Encoded:
    """What a chunk of records came to: the ids of all its documents end to end, and each one's length in tokens."""

    ids: np.ndarray
    lengths: list[int]
    text_bytes: int  # UTF-8, of the documents kept
    file_bytes: int  # of all records
    empty: int
    malformed: list[str]


@dataclass(frozen=True)
class Encoder:
    """Turns records into token ids of `dtype`."""

    tokenizer: Tokenizer
    json_key: str
    append_eod: bool
    skip_malformed: bool
    dtype: Any  # a numpy integer type

    def encode(self, chunk: Sequence[Record]) -> Encoded:
        """Tokenise the records of a chunk, in their order.

        Raises:
            InputError: the first malformed record, unless those are skipped.
        """
        texts, malformed = [], []
        for record in chunk:
            try:
                texts.append(record_text(record, self.json_key))
            except InputError as error:
                if not self.skip_malformed:
                    raise
                malformed.append(str(error))
        kept = [text for text in texts if text.strip()]  # white space alone has nothing to learn
        documents = [ids for ids in self.tokenizer.encode_batch(kept) if ids]
        end = [self.tokenizer.eos_id] if self.append_eod else []
        flat = [token for ids in documents for token in (*ids, *end)]
        return Encoded(
            ids=np.array(flat, dtype=self.dtype),
            lengths=[len(ids) + len(end) for ids in documents],
            text_bytes=sum(len(text.encode()) for text in kept),
            file_bytes=sum(len(record.data) for record in chunk),
            empty=len(texts) - len(documents),
            malformed=malformed,
        )


def records(inputs: Iterable[str | Path], split_lines: bool = False) -> Iterator[Record]:
    """The documents of the files, in order. `split_lines` makes each line of a text file a document."""
    for path in map(Path, inputs):
        with path.open("rb") as file:
            if path.suffix in JSON_SUFFIXES or split_lines:
                for number, line in enumerate(file, start=1):
                    yield Record(str(path), number, line)
            else:
                yield Record(str(path), 0, file.read())


def chunks(stream: Iterable[Record], chunk_bytes: int = CHUNK_BYTES) -> Iterator[list[Record]]:
    """Consecutive records, in lists of about `chunk_bytes`."""
    chunk: list[Record] = []
    size = 0
    for record in stream:
        chunk.append(record)
        size += len(record.data)
        if size >= chunk_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def record_text(record: Record, json_key: str) -> str:
    """The text of a document; a blank line is a document without text.

    Raises:
        InputError: bytes that are not UTF-8, a line that is not a JSON object, or one without text at `json_key`.
    """
    where = f"{record.path}:{record.line}" if record.line else record.path
    try:
        text = record.data.decode("utf-8-sig")
        if record.line:
            text = text.rstrip("\r\n")
        if Path(record.path).suffix not in JSON_SUFFIXES or not text.strip():
            return text
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON, of which each line must be one object ({error})") from error
    return _text_at(value, json_key, where)


def _text_at(value: object, json_key: str, where: str) -> str:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {type(value).__name__}, where each line must be one object")
    if json_key not in value:
        keys = ", ".join(map(repr, list(value)[:8])) or "none"
        raise InputError(f"{where}: no key {json_key!r} (it has {keys}): name the right one with --json-key")
    text = value[json_key]
    if not isinstance(text, str):
        raise InputError(f"{where}: {json_key!r} is a {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {json_key!r} has half a surrogate pair at character {error.start}") from error
    return text
