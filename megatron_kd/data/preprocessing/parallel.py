"""Encodes chunks of documents on several processes; the order of the results is the order of the chunks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from megatron_kd.data.raw.chunks import Chunk
from megatron_kd.data.raw.documents import Encoded, Encoder

_CHUNKS_AHEAD = 4  # a worker: bounds what is in memory

_worker_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this process when its parent is gone, killed or not: the pool alone would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ready() -> None:
    pass


def _encode(chunk: Chunk) -> Encoded:
    assert _worker_encoder is not None
    return _worker_encoder.encode(chunk)


def encode_in_order(stream: Iterable[Chunk], encoder: Encoder, workers: int) -> Generator[Encoded, None, None]:
    """Encode chunks on `workers` processes, a bounded number ahead, and yield the results in the order of chunks."""
    if workers == 1:
        yield from map(encoder.encode, stream)
        return
    # Forked, a worker has the tokenizer already and imports nothing. Its own threads would crowd out its siblings.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (encoder,))
    waiting: deque[Future[Encoded]] = deque()
    try:
        with _environment(TOKENIZERS_PARALLELISM="false"):
            pool.submit(_ready).result()  # forks the workers, before the stream has threads or locks of its own
            for chunk in stream:
                waiting.append(pool.submit(_encode, chunk))
                if len(waiting) >= workers * _CHUNKS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
