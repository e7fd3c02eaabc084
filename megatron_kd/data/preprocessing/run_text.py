"""A text file as a run's data: tokenised once into the run's folder, and found there by later starts.

`FOLDER/NAME.bin`, `.idx` and, last, `NAME.tokenised.json`, which says of what text and tokenizer the others were made.
Without it, or with one that tells of something else, they are made anew: a kill at any moment leaves nothing that is
read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.data.preprocessing.byte_progress import ByteProgress
from megatron_kd.data.preprocessing.tokenise_files import chat_template_of, preprocess
from megatron_kd.data.tokens.sidecar import hash_problems
from megatron_kd.data.tokens.tokenizer import Tokenizer
from megatron_kd.errors import ConfigError, InputError

_FORMAT = 1  # to be raised when the same text would give other tokens
_PIECE_BYTES = 1 << 22
_OTHERS = "`megatron-kd preprocess` has options for text that is kept in other ways"


def tokenised(text: str | Path, folder: str | Path, tokenizer: Tokenizer, *, chat: bool = False) -> str:
    """The prefix, in `folder`, of the tokenised files of `text`, which are made where they are not there yet.

    A line of a `.txt` file is a document, and so is the `text` of each line of a `.jsonl` file; with `chat`, each line
    of a `.jsonl` file is a conversation. Whether the file is the one that was tokenised is told by its bytes, not by
    its date: a copy is not tokenised again.

    Raises:
        InputError: a file that is missing or unreadable, a line that is malformed, or no text at all.
    """
    text, prefix = Path(text), Path(folder) / Path(text).stem
    record = prefix.with_name(f"{prefix.name}.tokenised.json")
    try:
        wanted = {"format": _FORMAT, "sha256": _digest(text), "tokenizer": tokenizer.fingerprint}
        if chat:
            wanted["chat_template"] = chat_template_of(tokenizer)
        if _is_complete(record, prefix, wanted, chat):
            return str(prefix)
        record.unlink(missing_ok=True)
        with ByteProgress(f"tokenising {text}") as on_progress:
            # One process: the tokenizer has threads of its own, and to fork with process groups open is asking for it.
            counts = preprocess(
                [text], prefix, tokenizer, split_lines=True, chat=chat, workers=1, on_progress=on_progress
            )
        about = {"text": str(text), "documents": counts.documents, "tokens": counts.tokens}
        _write(record, {**wanted, **about, "files": _sizes(prefix, chat)})
    except ConfigError as error:  # its lines name the options of `megatron-kd preprocess`
        raise InputError(f"dataset.text_path={text}: {'; '.join(error.problems)}") from error
    except InputError as error:
        raise InputError(f"dataset.text_path={text}: {error}; {_OTHERS}") from error
    except OSError as error:
        raise InputError(f"dataset.text_path={text}: {error}") from error
    print(f"tokenised {text} into {prefix}: {counts}", flush=True)
    return str(prefix)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _is_complete(record: Path, prefix: Path, wanted: dict[str, Any], chat: bool) -> bool:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        whole = wanted.items() <= known.items() and known["files"] == _sizes(prefix, chat)
        return whole and not hash_problems(str(prefix), f"{prefix}.cache")
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _sizes(prefix: Path, chat: bool) -> dict[str, int]:
    endings = (".bin", ".idx", *([LOSS_MASK] if chat else []))
    return {ending: os.path.getsize(f"{prefix}{ending}") for ending in endings}


def _write(path: Path, data: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
