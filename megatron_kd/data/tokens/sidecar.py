"""`PREFIX.sha256.json`: what `preprocess` wrote, so that a byte that has changed since is noticed.

It holds the size and the SHA-256 of `.bin`, `.idx` and `.loss_mask.bin`, the numbers of documents and tokens, and of
conversations the chat template, which leaves with a student that is trained on them. Files
are identified by suffix alone, so it cannot refer to files elsewhere. Data made by other programs have none.

Sizes, and the index, are compared at each start. Hashes are compared once for files of one size, date and inode, which
is then remembered in the folder of the index cache: at 1 to 2 GB/s, 100 GB take a minute or two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.runtime.files import FileRecord, replace_text, sha256_of

ENDING = ".sha256.json"
_FORMAT, _FORMAT_OF_CHATS = 1, 2
_KNOWN = (".bin", ".idx", LOSS_MASK)
_LARGEST = 1 << 20  # bytes; a sidecar has about 500, and a chat template a few thousand
_SHA256 = re.compile(r"[0-9a-f]{64}")
# For whatever `size_problems` and `hash_problems` find.
SIDECAR_CURE = (
    "copy the files again, or run `megatron-kd preprocess` again; if another program has rewritten them, delete "
    f"{ENDING[1:]}"
)


@dataclass(frozen=True)
class Sidecar:
    """The recorded sizes and hashes of the files at a prefix, by suffix, their counts, and the chat template."""

    files: Mapping[str, FileRecord]
    documents: int
    tokens: int
    chat_template: str | None = None

    def text(self) -> str:
        """The file's text. There is one spelling of it: a changed byte shows."""
        content: dict[str, Any] = {
            "format": _FORMAT if self.chat_template is None else _FORMAT_OF_CHATS,
            "documents": self.documents,
            "tokens": self.tokens,
            "files": {ending: {"size": r.size, "sha256": r.sha256} for ending, r in sorted(self.files.items())},
        }
        if self.chat_template is not None:
            content["chat_template"] = self.chat_template
        content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps(content, indent=1) + "\n"


def read_sidecar(prefix: str | Path) -> Sidecar | None:
    """The sidecar of the files at `prefix`; None where there is none.

    Raises:
        ValueError: it is malformed, or not a regular file.
        OSError: it cannot be read.
    """
    path = Path(f"{prefix}{ENDING}")
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
        raise ValueError("it is not a regular file of a plausible size")
    text = path.read_text(encoding="utf-8")
    try:
        sidecar = _parsed(json.loads(text))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it does not have what it should ({error!r})") from error
    if sidecar.text() != text:
        raise ValueError("it has other content than was written")
    return sidecar


def size_problems(prefix: str) -> list[str]:
    """Differences between the files at `prefix` and the sizes in their sidecar; empty if there is no sidecar."""
    try:
        sidecar = read_sidecar(prefix)
    except (OSError, ValueError) as error:
        return [f"{prefix + ENDING!r} cannot be read: {error}"]
    if sidecar is None:
        return []
    sizes = {ending: _size(prefix + ending) for ending in sidecar.files}
    return [
        f"{prefix + ending!r} has {'no such file' if sizes[ending] is None else f'{sizes[ending]} bytes'} where "
        f"{record.size} bytes were written"
        for ending, record in sidecar.files.items()
        if sizes[ending] != record.size
    ]


def recorded_templates(prefixes: Sequence[str]) -> dict[str, str]:
    """The chat template of each prefix that has one on record. What is damaged is for `size_problems` to report."""
    found: dict[str, str] = {}
    for prefix in prefixes:
        with contextlib.suppress(OSError, ValueError):
            if (sidecar := read_sidecar(prefix)) is not None and sidecar.chat_template is not None:
                found[prefix] = sidecar.chat_template
    return found


def hash_problems(prefix: str, cache: str | Path, *, remember: bool = True) -> list[str]:
    """Differences between the hashes in the sidecar and the content of files whose sizes are right.

    Args:
        prefix: of the files.
        cache: a folder in which it is remembered that nothing was wrong, if it can be written.
        remember: whether to do so.
    """
    try:
        sidecar = read_sidecar(prefix)
        if sidecar is None:
            return []
        seen = json.dumps([_identity(prefix + ending) for ending in sidecar.files])
        key = hashlib.sha256(f"{os.path.abspath(prefix)}\n{sidecar.text()}".encode()).hexdigest()[:32]
        memory = Path(cache) / f"verified-{key}.json"
        if memory.is_file() and memory.read_text(encoding="utf-8", errors="replace") == seen:
            return []
        wrong = [
            ending for ending, record in sidecar.files.items() if sha256_of(Path(prefix + ending)) != record.sha256
        ]
    except (OSError, ValueError) as error:
        return [f"{prefix!r} cannot be compared with {Path(prefix).name}{ENDING}: {error}"]
    if remember and not wrong:
        with contextlib.suppress(OSError):  # then it is read again at the next start, that is all
            memory.parent.mkdir(parents=True, exist_ok=True)
            replace_text(memory, seen)
    return [f"{prefix + ending!r} has other content than was written (SHA-256)" for ending in wrong]


def _parsed(content: Any) -> Sidecar:
    if content["format"] not in (_FORMAT, _FORMAT_OF_CHATS):
        raise ValueError(f"format {content['format']!r} is neither {_FORMAT} nor {_FORMAT_OF_CHATS}")
    files = {}
    for ending, record in content["files"].items():
        if ending not in _KNOWN:
            raise ValueError(f"{ending!r} is none of {', '.join(_KNOWN)}")
        if type(record["size"]) is not int or not _SHA256.fullmatch(record["sha256"]):
            raise ValueError(f"{ending!r} has no size and SHA-256")
        files[ending] = FileRecord(record["size"], record["sha256"])
    if not isinstance(template := content.get("chat_template"), str | None):
        raise ValueError(f"chat_template {template!r} is not text")
    return Sidecar(files, content["documents"], content["tokens"], template)


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.isfile(path) else None


def _identity(path: str) -> list[int]:
    about = os.stat(path)
    return [about.st_size, about.st_mtime_ns, about.st_ino]
