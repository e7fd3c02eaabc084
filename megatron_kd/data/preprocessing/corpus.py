"""The demo corpus: the Python standard library's own sources, their tokenizer, and both splits tokenised.

`make_corpus` leaves in a folder `tokenizer/`, `train.jsonl`, `valid.jsonl`, `train.bin/.idx`, `valid.bin/.idx` and,
last, `manifest.json`, which says that the others are complete.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.data.preprocessing.counts import Counts
from megatron_kd.data.preprocessing.records import read_record, write_record
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import InputError
from megatron_kd.runtime.files import replace_text

_FORMAT = 1  # to be raised when the same sources would give another corpus
_HELD_OUT_PERCENT = 10

# Third-party packages are not the standard library, its tests are not installed everywhere, and the character tables
# of `encodings` are near copies of each other: one in train would give away another in valid.
_LEFT_OUT_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings"}
)
_LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")  # this machine's build settings


@dataclass(frozen=True)
class SourceFile:
    """A document of the corpus; `path` is relative, with forward slashes."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether this file is for validation. It depends on the path alone."""
        return int(hashlib.sha256(self.path.encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def read_documents(source: Path, say: Callable[[str], None] = print) -> list[SourceFile]:
    """The `*.py` files under `source` by path, without empty files, copies and files that are not UTF-8.

    Raises:
        InputError: a folder without such files.
    """
    documents: dict[str, SourceFile] = {}  # by text, so that a copy is found
    undecodable, left_out = [], 0
    for path in sorted(source.rglob("*.py"), key=lambda path: path.relative_to(source).as_posix()):
        relative = path.relative_to(source)
        if _LEFT_OUT_FOLDERS.intersection(relative.parts[:-1]) or relative.parts[0].startswith(_LEFT_OUT_PREFIXES):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            undecodable.append(relative.as_posix())
            continue
        if not text.strip() or text in documents:
            left_out += 1
        else:
            documents[text] = SourceFile(relative.as_posix(), text)
    if undecodable:
        say(f"skipped {len(undecodable)} files that are not UTF-8: {', '.join(undecodable)}")
    if left_out:
        say(f"left out {left_out} empty or repeated files")
    if not documents:
        raise InputError(f"{str(source)!r} has no Python sources: give a folder that has some with --source")
    return list(documents.values())


def make_corpus(
    output: str | Path,
    *,
    vocab_size: int = 2048,
    source: str | Path | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make the corpus in the folder `output`, unless it is complete there, and return its manifest.

    `source` None: the running Python's standard library. The tokenizer has `vocab_size` entries and is trained on
    the train split. An incomplete corpus is rebuilt; files that do not belong to the corpus are left alone.

    Raises:
        InputError: no sources, or a folder that cannot be written.
    """
    output = Path(output)
    wanted = {"format": _FORMAT, "vocab_size": vocab_size, "source": str(source or "standard library")}
    manifest = read_record(output / "manifest.json", wanted, lambda: _sizes(output))
    if manifest is None:
        folder = Path(source or sysconfig.get_paths()["stdlib"])
        try:
            output.mkdir(parents=True, exist_ok=True)
            (output / "manifest.json").unlink(missing_ok=True)
            splits = _make(output, read_documents(folder, say), vocab_size, workers)
            about = {"python": platform.python_version(), "splits": splits}
            manifest = write_record(output / "manifest.json", wanted, _sizes(output), **about)
        except OSError as error:
            raise InputError(f"the corpus cannot be made in {str(output)!r}: {error}") from error
    else:
        say(f"{output} is complete")
    return manifest


def describe(manifest: dict[str, Any]) -> str:
    """A line for each split: documents, bytes, tokens and bytes per token."""
    return "\n".join(
        f"{name}: {Counts(split['documents'], split['tokens'], split['bytes'])}"
        for name, split in manifest["splits"].items()
    )


def _make(output: Path, documents: list[SourceFile], vocab_size: int, workers: int | None) -> dict[str, Any]:
    train_byte_bpe((item.text for item in documents if not item.held_out), vocab_size, output / "tokenizer")
    tokenizer = load_huggingface(output / "tokenizer")
    splits = {}
    for name, held_out in (("train", False), ("valid", True)):
        chosen = [item for item in documents if item.held_out == held_out]
        lines = (json.dumps({"path": item.path, "text": item.text}, ensure_ascii=False) for item in chosen)
        replace_text(output / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        counts = preprocess([output / f"{name}.jsonl"], output / name, tokenizer, workers=workers)
        splits[name] = {"documents": counts.documents, "bytes": counts.text_bytes, "tokens": counts.tokens}
    return splits


def _sizes(output: Path) -> dict[str, int]:
    names = [f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("jsonl", "bin", "idx")]
    names += ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    return {name: (output / name).stat().st_size for name in names}
