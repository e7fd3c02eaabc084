"""The output of a run of `preprocess` while it is made: files that a stopped run leaves, and resumes from.

Beside PREFIX.bin and PREFIX.idx to be, there are for that time

    PREFIX.partial.bin        token ids, as in PREFIX.bin
    PREFIX.partial.lengths    each document's length in tokens, int32
    PREFIX.partial.loss_mask  for conversations: one byte per token, as in PREFIX.loss_mask.bin
    PREFIX.partial.journal    a line that says of what and how the files are made, and a line for each time when all
                              of them were on disk: their sizes, the counts, and where in the inputs to resume

A run that resumes cuts off what was written after the last line of the journal, and makes it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.data.preprocessing.counts import Progress
from megatron_kd.data.raw.chunks import Cursor
from megatron_kd.data.raw.documents import Encoded
from megatron_kd.data.tokens.index_file import write_index
from megatron_kd.data.tokens.sidecar import ENDING, Sidecar
from megatron_kd.data.tokens.token_files import read_lengths
from megatron_kd.errors import InputError, MegatronKDError
from megatron_kd.runtime.files import FileRecord, read_into, sha256_of, write_file

_FORMAT = 1  # to be raised when the same inputs and options would give other files
_SECONDS_BETWEEN_COMMITS = 1.0


class PartialOutput:
    """A context manager. What a run that was stopped has on disk is left for the next; one that is refused leaves none.

    Args:
        prefix: of the output.
        made_of: what decides on the files' content; a run resumes only from files made of the same.
        dtype: of a token id.
        with_mask: whether there is a loss mask.
        chat_template: of conversations, for the record.
    """

    def __init__(
        self,
        prefix: Path,
        made_of: dict[str, Any],
        dtype: np.dtype,
        *,
        with_mask: bool,
        chat_template: str | None = None,
    ) -> None:
        self.prefix, self.progress, self._chat_template = prefix, Progress(), chat_template
        self._header = json.dumps({"format": _FORMAT, **made_of})
        self._dtype, self._committed = dtype, -_SECONDS_BETWEEN_COMMITS
        self._token_bytes = {".bin": dtype.itemsize, **({".loss_mask": 1} if with_mask else {})}
        self._files: dict[str, BinaryIO] = {}
        self._digests = {suffix: hashlib.sha256() for suffix in self._token_bytes}

    def __enter__(self) -> PartialOutput:
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and (issubclass(kind, MegatronKDError) or not self._has_progress()):
            self._remove()
        self._close()

    @property
    def resumed(self) -> bool:
        """Whether something is there already."""
        return self.progress.cursor != Cursor()

    def append(self, chunk: Encoded) -> None:
        """Write a chunk, and flush to disk about every second."""
        self._write(".bin", chunk.ids.tobytes())
        self._files[".lengths"].write(np.array(chunk.lengths, dtype=np.int32).tobytes())
        if ".loss_mask" in self._files and chunk.loss_mask is not None:
            self._write(".loss_mask", chunk.loss_mask.tobytes())
        self.progress.counts.add(chunk)
        self.progress.cursor = chunk.after
        self.progress.file_bytes += chunk.file_bytes
        if time.monotonic() - self._committed >= _SECONDS_BETWEEN_COMMITS:
            self._sync()
            self._files[".journal"].write(f"{json.dumps(asdict(self.progress))}\n".encode())
            self._flush(".journal")
            self._committed = time.monotonic()

    def finish(self) -> None:
        """Make the index, check the files against what was counted, and move them to their places."""
        self._sync()
        write_index(self._path(".idx"), np.fromfile(self._path(".lengths"), dtype=np.int32), self._dtype)
        self._verify()
        self._path(ENDING).unlink(missing_ok=True)
        write_file(self._path(ENDING), lambda file: file.write(self._sidecar().text().encode()))
        # Without its index a .bin is not a dataset, so at no moment do an old and a new file make a pair.
        Path(f"{self.prefix}.idx").unlink(missing_ok=True)
        Path(f"{self.prefix}{LOSS_MASK}").unlink(missing_ok=True)
        if ".loss_mask" in self._files:
            os.replace(self._path(".loss_mask"), f"{self.prefix}{LOSS_MASK}")
        os.replace(self._path(".bin"), f"{self.prefix}.bin")
        os.replace(self._path(ENDING), f"{self.prefix}{ENDING}")
        os.replace(self._path(".idx"), f"{self.prefix}.idx")
        self._remove()

    def _write(self, suffix: str, data: bytes) -> None:
        self._files[suffix].write(data)
        self._digests[suffix].update(data)

    def _sidecar(self) -> Sidecar:
        counts, index = self.progress.counts, self._path(".idx")
        endings = {".bin": ".bin", ".loss_mask": LOSS_MASK}
        files = {endings[s]: FileRecord(self._size(s), digest.hexdigest()) for s, digest in self._digests.items()}
        files[".idx"] = FileRecord(index.stat().st_size, sha256_of(index))
        return Sidecar(files, counts.documents, counts.tokens, self._chat_template)

    def _open(self) -> None:
        # The journal first: who has it locked has the others.
        self._files[".journal"] = self._path(".journal").open("a+b")
        try:
            fcntl.lockf(self._files[".journal"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{self.prefix}: another process is making these files") from error
        lines = self._recorded()
        for suffix in (".lengths", *self._token_bytes):
            self._files[suffix] = self._path(suffix).open("ab")
        found = next(filter(None, map(Progress.of_line, reversed(lines[1:]))), None)
        if found is not None and all(self._size(suffix) >= size for suffix, size in self._sizes(found).items()):
            self.progress = found
        for suffix, size in self._sizes(self.progress).items():
            self._files[suffix].truncate(size)
            if suffix in self._digests:  # read an earlier run's output once, to continue its hash
                read_into(self._digests[suffix], self._path(suffix))
        # Rewritten, so that it ends in a complete line, and with the last record only, since no other is read.
        journal = [self._header, *([json.dumps(asdict(self.progress))] if self.resumed else [])]
        self._files[".journal"].truncate(0)
        self._files[".journal"].write("".join(f"{line}\n" for line in journal).encode())
        self._flush(".journal")

    def _recorded(self) -> list[str]:
        """The journal's lines; empty if they describe other files."""
        self._files[".journal"].seek(0)
        lines = self._files[".journal"].read().decode(errors="replace").splitlines()
        return lines if lines[:1] == [self._header] else []

    def _sizes(self, progress: Progress) -> dict[str, int]:
        tokens = {suffix: progress.counts.tokens * each for suffix, each in self._token_bytes.items()}
        return {".lengths": progress.counts.documents * 4, **tokens}

    def _verify(self) -> None:
        counts = self.progress.counts
        lengths = read_lengths(str(self._path("")))
        if (len(lengths), int(lengths.sum(dtype=np.int64))) != (counts.documents, counts.tokens) or any(
            self._size(suffix) != size for suffix, size in self._sizes(self.progress).items()
        ):
            sizes = {suffix: self._size(suffix) for suffix in self._sizes(self.progress)}
            raise MegatronKDError(f"{self.prefix}: wrote {len(lengths)} documents, {sizes} bytes; counted: {counts}")

    def _sync(self) -> None:
        for suffix in self._files:
            if suffix != ".journal":
                self._flush(suffix)

    def _flush(self, suffix: str) -> None:
        self._files[suffix].flush()
        os.fsync(self._files[suffix].fileno())

    def _has_progress(self) -> bool:
        return len(self._path(".journal").read_bytes().splitlines()) > 1

    def _size(self, suffix: str) -> int:
        return self._path(suffix).stat().st_size

    def _path(self, suffix: str) -> Path:
        return Path(f"{self.prefix}.partial{suffix}")

    def _remove(self) -> None:
        for suffix in (".bin", ".idx", ".lengths", ".loss_mask", ENDING, ".journal"):
            self._path(suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
