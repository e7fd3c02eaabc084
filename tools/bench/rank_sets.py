"""Sets of gloo ranks that stay alive and run the functions they are sent, so that several kinds of run can take turns.

Ranks are forked from one server process that has done the imports, which cost seconds a process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")

# A rank is asked by name for a function without arguments whose result pickles.
Answers = dict[str, Callable[[], Any]]
# Builds what a rank is to have; a module-level function.
Build = Callable[..., AbstractContextManager[Answers]]


class RankSet:
    """`size` ranks in processes of their own, each with what `build(*args)` gives there. Ready when it is made."""

    def __init__(self, size: int, build: Build, *args: Any) -> None:
        port = _free_port()
        _context.set_forkserver_preload(["tools.bench.imports"])
        self._processes, self._pipes = [], []
        for rank in range(size):
            pipe, theirs = _context.Pipe()
            process = _context.Process(target=_serve, args=(theirs, rank, size, port, build, args), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(pipe)
        self._hear()

    def ask(self, word: str) -> list[Any]:
        """The answers of all ranks, which work on them at the same time."""
        for pipe in self._pipes:
            pipe.send(word)
        return self._hear()

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for process in self._processes:
            process.kill()
            process.join()

    def _hear(self) -> list[Any]:
        answers = []
        for rank, (pipe, process) in enumerate(zip(self._pipes, self._processes, strict=True)):
            try:
                answers.append(pipe.recv())
            except (EOFError, ConnectionError):
                process.join()
                raise SystemExit(f"rank {rank} of a set ended with exit code {process.exitcode}") from None
        return answers


def _serve(pipe: Connection, rank: int, size: int, port: int, build: Build, args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    with build(*args) as answers:
        pipe.send(True)
        while True:
            try:
                word = pipe.recv()
            except EOFError:  # the one who asks is gone
                return
            pipe.send(answers[word]())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
