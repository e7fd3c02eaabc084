"""Writing a checkpoint folder: complete under its name, or not there.

It is written under a temporary name and renamed when complete, and is never written to again.
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_kd.config.document import write_yaml
from megatron_kd.config.saved import RUN_CONFIG
from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.errors import InputError
from megatron_kd.models.provider import GPTModelProvider
from megatron_kd.runtime.agreement import raised_together


@contextmanager
def new_checkpoint(final: Path, run_config: str) -> Iterator[Path]:
    """A folder to write a checkpoint into, which has the name `final` once the block is left without an error.

    Every rank must enter and leave the block; a process without ranks may do so alone.

    Args:
        final: must not be there.
        run_config: text of the checkpoint's `run_config.yaml`.
    """
    temporary = final.with_name(f".{final.name}.partial")
    if _is_first():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _wait_for_all()
    yield temporary
    if _is_first():
        (temporary / RUN_CONFIG).write_text(run_config, encoding="utf-8")
        make_durable(temporary)
        temporary.rename(final)
        _sync(final.parent)
    _wait_for_all()


def make_durable(folder: Path) -> None:
    """Wait until the files of a folder are on the disk."""
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def refuse_existing(path: Path) -> None:
    """InputError if there is something at `path`, where a folder is to be made."""
    if path.exists():
        raise InputError(f"{path}: is already there, and is never overwritten; name another folder")


def write_state(state: dict[str, Any], folder: Path, content_metadata: dict[str, Any] | None = None) -> None:
    """megatron-core's save, in the foreground. Every rank must call this."""
    # A save in the foreground needs no queue of another process; megatron-core would start one (6 s of imports).
    filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(state, str(folder), content_metadata=content_metadata)


def save_weights(
    shards: Sequence[ShardedTensor],
    path: str | Path,
    *,
    model: GPTModelProvider,
    vocab_size: int,
    tokenizer: TokenizerConfig | None = None,
) -> Path:
    """Write a checkpoint that holds a model's weights and nothing to resume from. Every rank must call this.

    It is read by `load_weights`, `checkpoint.pretrained_checkpoint` and `model.teacher.checkpoint`, and its
    architecture by `config.saved.architecture_of`.

    Args:
        shards: this rank's part, as `models.weights.local_shards` gives it; in any dtype, which is kept.
        path: the folder to make.
        model: the architecture, which goes into the folder's `run_config.yaml`.
        vocab_size: the model's number of token ids, without padding.
        tokenizer: of the model, if it is known; goes into `run_config.yaml` too.

    Returns:
        `path`.

    Raises:
        InputError: there is something at `path` already.
    """
    final = Path(path)
    with raised_together():
        refuse_existing(final)
    state: dict[str, Any] = {str(index): shard for index, shard in enumerate(shards)}
    state["run"] = {"step": 0, "vocab_size": vocab_size}
    with new_checkpoint(final, weights_config(model, vocab_size, tokenizer)) as folder:
        write_state(state, folder)
    return final


def weights_config(model: GPTModelProvider, vocab_size: int, tokenizer: TokenizerConfig | None = None) -> str:
    """The `run_config.yaml` of a checkpoint of weights alone: its model, and its tokenizer where that is known."""
    sections: dict[str, Any] = {"model": {**asdict(model), "vocab_size": vocab_size}}
    if tokenizer is not None:
        sections["tokenizer"] = asdict(tokenizer)
    return write_yaml(sections)


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
