"""Faults of writing checkpoints, at a chosen operation of a chosen rank.

`operations` counts what a process does to files below a folder: making a folder, opening, writing and syncing a file,
renaming, deleting. What is to happen before the n-th of them is a function: `kill` (as a dying machine would, in the
middle of a write or a deletion) or `fail` (as a full or broken disk would).

    with operations(cfg_folder, at(7, kill)):
        train(cfg)
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_kd.runtime.files import HashedFile


@dataclass
class Operation:
    """Something a process is about to do to a file.

    Attributes:
        number: counted from 0.
        name: mkdir, open, write, sync, rename or delete.
        path: of what.
        half: does half of it; only for a write and for deleting a folder.
    """

    number: int
    name: str
    path: Path
    half: Callable[[], Any] = field(default=lambda: None, repr=False)


Act = Callable[[Operation], None]


@contextmanager
def operations(under: Path, act: Act = lambda _: None) -> Iterator[list[Operation]]:
    """Call `act` before each operation on files below `under`, and list them."""
    seen: list[Operation] = []
    root = os.path.realpath(under)

    def note(name: str, path: Any, half: Callable[[], Any] = lambda: None) -> None:
        if os.path.realpath(path).startswith(root):
            seen.append(Operation(len(seen), name, Path(path), half))
            act(seen[-1])

    originals = {
        "open": HashedFile.__init__,
        "write": HashedFile.write,
        "sync": os.fsync,
        "rename": os.rename,
        "mkdir": Path.mkdir,
        "delete": shutil.rmtree,
    }

    def opened(self: HashedFile, path: Path) -> None:
        note("open", path)
        originals["open"](self, path)

    def written(self: HashedFile, data: Any) -> int:
        part = memoryview(data).cast("B")
        try:
            note("write", self.name, lambda: originals["write"](self, part[: len(part) // 2]))
        except OSError as error:
            self.failure = self.failure or error
            raise
        return originals["write"](self, data)

    def synced(descriptor: int) -> None:
        note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        originals["sync"](descriptor)

    def renamed(old: Any, new: Any, **kwargs: Any) -> None:
        note("rename", old)
        originals["rename"](old, new, **kwargs)

    def made(self: Path, *args: Any, **kwargs: Any) -> None:
        if not self.exists():
            note("mkdir", self)
        originals["mkdir"](self, *args, **kwargs)

    def deleted(path: Any, *args: Any, **kwargs: Any) -> None:
        note("delete", path, lambda: _delete_half(Path(path)))
        originals["delete"](path, *args, **kwargs)

    with (
        mock.patch.object(HashedFile, "__init__", opened),
        mock.patch.object(HashedFile, "write", written),
        mock.patch.object(os, "fsync", synced),
        mock.patch.object(os, "rename", renamed),
        mock.patch.object(Path, "mkdir", made),
        mock.patch.object(shutil, "rmtree", deleted),
    ):
        yield seen


def _delete_half(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files[len(files) // 2 :]:
        path.unlink()


def at(number: int, do: Act, after: Callable[[Operation], bool] = lambda _: True) -> Act:
    """Do something before the `number`-th operation of those that `after` lets count."""
    left = [number]

    def act(operation: Operation) -> None:
        if after(operation):
            left[0] -= 1
            if left[0] == -1:  # once: what follows is the reaction to it
                do(operation)

    return act


def kill(operation: Operation) -> None:
    """End this process at once, as `kill -9` does; a write is left half done."""
    operation.half()
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int = errno.ENOSPC) -> Act:
    """The operation fails with an error of the operating system; a write is left half done."""

    def act(operation: Operation) -> None:
        operation.half()
        raise OSError(code, os.strerror(code), str(operation.path))

    return act
