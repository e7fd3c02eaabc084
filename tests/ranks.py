"""`run_ranks(2, fn, arg)` runs `fn(arg)` on two real gloo ranks and returns what each returned.

Starting Python and importing the stack costs 6 to 8 seconds a process, so ranks are forked from one server
process (multiprocessing's forkserver) that has done the imports (`tests.preload`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


class RankFailed(AssertionError):
    """A rank raised, died or hung; the message holds each failed rank's traceback."""


def run_ranks(
    world_size: int, fn: Callable[..., Any], *args: Any, timeout: float = 90, last_words: float = 1.0, **kwargs: Any
) -> list[Any]:
    """Run `fn(*args, **kwargs)` on `world_size` ranks over gloo, and return the results by rank.

    `fn` must be a module-level function; arguments and results must pickle. `torch.distributed` is
    initialised before `fn` is called and destroyed after it. After a rank has failed, the others have `last_words`
    seconds to end too, and are then killed.

    Raises:
        RankFailed: with the traceback of every rank that raised, or the exit code of one that died.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        port = _free_port()
        processes, pipes = [], []
        for rank in range(world_size):
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_rank_main,
                args=(rank, world_size, port, folder, sender, fn, args, kwargs),
                daemon=False,
            )
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        try:
            return _collect(processes, pipes, timeout, last_words)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):  # gone in between
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGKILL)
                process.join()


def _collect(processes: list[Any], pipes: list[Connection], timeout: float, last_words: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    pending = dict(enumerate(pipes))
    while pending and not failures:
        ready = wait(list(pending.values()), timeout)
        if not ready:
            failures.update(dict.fromkeys(pending, f"no answer within {timeout} s"))
        _receive(ready, pending, results, failures, processes)
    if failures:  # others may be failing for the same reason: give them a moment to say so
        deadline = time.monotonic() + last_words
        while pending and (ready := wait(list(pending.values()), max(0, deadline - time.monotonic()))):
            _receive(ready, pending, results, failures, processes)
        raise RankFailed("\n".join(f"--- rank {rank}\n{text}" for rank, text in sorted(failures.items())))
    return [results[rank] for rank in range(len(processes))]


def _receive(ready: list[Any], pending: dict, results: dict, failures: dict, processes: list) -> None:
    for rank, pipe in list(pending.items()):
        if pipe in ready:
            del pending[rank]
            try:
                ok, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                processes[rank].join()
                ok, value = False, f"died with exit code {processes[rank].exitcode}"
            (results if ok else failures)[rank] = value


def _rank_main(
    rank: int,
    world_size: int,
    port: int,
    folder: str,
    pipe: Connection,
    fn: Callable,
    args: tuple,
    kwargs: dict,
) -> None:
    import torch

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=120),
        )
        result = fn(*args, **kwargs)
        # Plain bytes: multiprocessing would pass tensors as shared memory, which goes when this rank does.
        pipe.send_bytes(pickle.dumps((True, result)))
        torch.distributed.barrier()  # no rank leaves while another still communicates with it
        torch.distributed.destroy_process_group()
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
        pipe.close()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
