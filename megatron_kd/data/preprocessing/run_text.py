"""A text file as a run's data: tokenised once into the run's folder, and found there by later starts.

`FOLDER/NAME.bin`, `.idx` and, last, `NAME.tokenised.json`, which records their text and tokenizer. If it
is missing or does not match, they are made again, so files that a killed run left incomplete are never read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.data.preprocessing.byte_progress import ByteProgress
from megatron_kd.data.preprocessing.records import read_record, tokenised_record, write_record
from megatron_kd.data.preprocessing.tokenise_files import chat_template_of, preprocess, read_first_records
from megatron_kd.data.tokens.sidecar import hash_problems
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.runtime.files import sha256_of

_FORMAT = 1  # to be raised when the same text would give other tokens
_CHAT_FORMAT = 2  # the same of conversations
_OTHERS = "`megatron-kd preprocess` has options for text that is kept in other ways"


def tokenised(text: str | Path, folder: str | Path, tokenizer: Tokenizer, *, chat: bool = False) -> str:
    """The prefix, in `folder`, of the tokenised files of `text`, which are made where they are not there yet.

    A line of a `.txt` file is a document, and so is the `text` of each line of a `.jsonl` file; with `chat`, each line
    of a `.jsonl` file is a conversation. Whether the file is the one that was tokenised is decided by its bytes, not by
    its date: a copy is not tokenised again.

    Raises:
        InputError: a file that is missing or unreadable, a line that is malformed, or no text at all.
    """
    text, prefix = Path(text), Path(folder) / Path(text).stem
    with _errors_of(text):
        made_of = {"format": _FORMAT, "sha256": sha256_of(text), "tokenizer": tokenizer.fingerprint}
        if chat:
            made_of |= {"chat_format": _CHAT_FORMAT, "chat_template": chat_template_of(tokenizer)}
        if not _is_complete(prefix, made_of, chat):
            _tokenise(text, prefix, tokenizer, made_of, chat)
    return str(prefix)


def check_first_records(text: str | Path, tokenizer: Tokenizer, *, chat: bool = False) -> None:
    """Read the first records of `text` as `tokenised` does.

    Raises:
        InputError: as `tokenised`.
    """
    with _errors_of(Path(text)):
        read_first_records(text, tokenizer, chat=chat)


@contextmanager
def _errors_of(text: Path) -> Iterator[None]:
    """Name the field whose file is at fault in the errors of the block."""
    try:
        yield
    except ConfigError as error:  # its lines name the options of `megatron-kd preprocess`
        raise InputError(f"dataset.text_path={text}: {'; '.join(error.lines)}") from error
    except InputError as error:
        raise InputError(f"dataset.text_path={text}: {error}; {_OTHERS}") from error
    except OSError as error:
        raise InputError(f"dataset.text_path={text}: {error}") from error


def _tokenise(text: Path, prefix: Path, tokenizer: Tokenizer, made_of: dict[str, Any], chat: bool) -> None:
    tokenised_record(prefix).unlink(missing_ok=True)
    with ByteProgress(f"tokenising {text}") as on_progress:
        # One process: the tokenizer has threads of its own, and to fork with process groups open is asking for it.
        counts = preprocess([text], prefix, tokenizer, split_lines=True, chat=chat, workers=1, on_progress=on_progress)
    about = {"text": str(text), "documents": counts.documents, "tokens": counts.tokens}
    write_record(tokenised_record(prefix), made_of, _sizes(prefix, chat), **about)
    print(f"tokenised {text} into {prefix}: {counts}", flush=True)


def _is_complete(prefix: Path, made_of: dict[str, Any], chat: bool) -> bool:
    record = read_record(tokenised_record(prefix), made_of, lambda: _sizes(prefix, chat))
    return record is not None and not hash_problems(str(prefix), f"{prefix}.cache")


def _sizes(prefix: Path, chat: bool) -> dict[str, int]:
    endings = (".bin", ".idx", *([LOSS_MASK] if chat else []))
    return {ending: os.path.getsize(f"{prefix}{ending}") for ending in endings}
