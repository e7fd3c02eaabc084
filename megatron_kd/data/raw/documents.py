"""Records to documents to token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_kd.config.values import a_type
from megatron_kd.data.raw.chunks import Chunk, Cursor, Record
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import InputError

_OF_ARRAY = ": of a file that is one array, make lines with `jq -c '.[]'`"


@dataclass(frozen=True)
class Document:
    """Token ids, which of them are to be learnt (None: all), and the bytes of the text they stand for."""

    ids: list[int]
    loss_mask: list[bool] | None
    text_bytes: int


@dataclass(frozen=True)
class Encoded:
    """A tokenised chunk: the concatenated ids of all its documents, and each document's length in tokens.

    `loss_mask` (uint8) has a 1 for each id that is to be learnt; None where all are.
    """

    ids: np.ndarray
    loss_mask: np.ndarray | None
    lengths: list[int]
    text_bytes: int  # UTF-8, of the documents kept
    file_bytes: int  # of all records
    empty: int
    malformed: list[str]
    after: Cursor


class Reader(Protocol):
    """From records to documents, in two steps: what may be wrong with a record shows in the first."""

    def read(self, record: Record) -> Any:
        """Parse a record for `documents`. Raises an InputError if it is malformed."""

    def documents(self, contents: Sequence[Any]) -> list[Document]:
        """Documents in the same order, the empty ones left out."""


@dataclass(frozen=True)
class TextReader:
    """Each record is a text: of a line, of a file, or at `json_key` of an object or row."""

    tokenizer: Tokenizer
    json_key: str
    append_eod: bool

    def read(self, record: Record) -> str:
        """The text of a record; a blank line is one without text.

        Raises:
            InputError: see `record_object`, or one without text at `json_key`.
        """
        if record.kind in ("line", "file"):
            text = _decoded(record)
            return text.rstrip("\r\n") if record.kind == "line" else text
        value = record_object(record)
        return "" if value is None else _text_at(value, self.json_key, record.where)

    def documents(self, contents: Sequence[str]) -> list[Document]:
        """See `Reader`."""
        kept = [text for text in contents if text.strip()]  # white space alone has nothing to learn
        end = [self.tokenizer.eos_id] if self.append_eod else []
        encoded = zip(self.tokenizer.encode_batch(kept), kept, strict=True)
        return [Document([*ids, *end], None, len(text.encode())) for ids, text in encoded if ids]


@dataclass(frozen=True)
class Encoder:
    """Turns chunks of records into token ids of `dtype`."""

    reader: Reader
    skip_malformed: bool
    dtype: Any  # a numpy integer type

    def encode(self, chunk: Chunk) -> Encoded:
        """Tokenise the records of a chunk, in their order.

        Raises:
            InputError: the first malformed record, unless those are skipped.
        """
        contents, malformed = [], []
        for index in range(len(chunk.data)):
            try:
                contents.append(self.reader.read(chunk.record(index)))
            except InputError as error:
                if not self.skip_malformed:
                    raise
                malformed.append(str(error))
        documents = self.reader.documents(contents)
        masks = [document.loss_mask for document in documents if document.loss_mask is not None]
        return Encoded(
            ids=np.array([token for document in documents for token in document.ids], dtype=self.dtype),
            loss_mask=np.array([bit for mask in masks for bit in mask], dtype=np.uint8) if masks else None,
            lengths=[len(document.ids) for document in documents],
            text_bytes=sum(document.text_bytes for document in documents),
            file_bytes=chunk.file_bytes,
            empty=len(contents) - len(documents),
            malformed=malformed,
            after=chunk.after,
        )


def record_object(record: Record) -> dict[str, Any] | None:
    """The object of a JSON line, or the columns of a row; None for a blank line.

    Raises:
        InputError: bytes that are not UTF-8, or a line that is not a JSON object.
    """
    if isinstance(record.data, dict):
        return record.data
    text = _decoded(record)
    if not text.strip():
        return None
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        cure = _OF_ARRAY if text.startswith("[") else ""
        raise InputError(f"{record.where}: not JSON, of which each line must be one object ({error}){cure}") from error
    if not isinstance(value, dict):
        cure = _OF_ARRAY if isinstance(value, list) else ""
        raise InputError(f"{record.where}: a JSON {type(value).__name__}, where each line must be one object{cure}")
    return value


def read_json(text: str) -> Any:
    """The value of JSON text. Of a key that an object has twice, `json` alone would keep the last value silently.

    Raises:
        ValueError: not JSON, or an object with a key twice.
    """
    return json.loads(text, object_pairs_hook=_once_each)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def checked_text(text: Any, name: str, where: str) -> str:
    """`text`, which a record calls `name`.

    Raises:
        InputError: anything but a string that can be written as UTF-8.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: {name} is {a_type(text)}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {name} has half a surrogate pair at character {error.start}") from error
    return text


def _decoded(record: Record) -> str:
    assert isinstance(record.data, bytes)
    try:
        return record.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{record.where}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _text_at(value: dict[str, Any], json_key: str, where: str) -> str:
    if json_key not in value:
        keys = ", ".join(map(repr, list(value)[:8])) or "none"
        raise InputError(f"{where}: no key {json_key!r} (it has {keys}): name the right one with --json-key")
    return checked_text(value[json_key], repr(json_key), where)
