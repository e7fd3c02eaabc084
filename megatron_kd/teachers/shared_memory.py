"""Tensors that all ranks of a machine share: one of them makes a file, all map it, and its name is gone at once.

A file without a name cannot be left behind, whichever way the ranks end.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.errors import InputError
from megatron_kd.runtime.layout import Axis
from megatron_kd.runtime.together import from_all, raised_together

_ALIGNMENT = 64  # bytes
_MEMORY = Path("/dev/shm")


def is_first_of_machine(world: Axis) -> bool:
    """Whether no lower rank of `world` runs on this machine. Each of them must call this."""
    return _first_of_machine(world) == world.rank


def shared_tensors(like: list[Tensor], run_dir: Path, world: Axis) -> list[Tensor]:
    """Allocate tensors of the shapes and dtypes of `like` in memory that the ranks of `world` on a machine share.

    The memory is in /dev/shm if it has room, otherwise in a file in `run_dir` that the system pages in.
    Every rank of `world` must call this, with tensors of the same shapes.

    Raises:
        InputError: neither has enough room.
    """
    offsets, total = _offsets(like)
    owner = _first_of_machine(world)
    path: Path | None = None
    with raised_together():
        if owner == world.rank:
            path = _create(total, run_dir)
    paths = from_all(path, world.group)
    memory = torch.from_file(str(paths[owner]), shared=True, size=total, dtype=torch.uint8)
    dist.barrier(world.group)  # all have mapped the file, so it can lose its name
    if path is not None:
        path.unlink()
    return [
        memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(offsets, like, strict=True)
    ]


def _offsets(like: list[Tensor]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for tensor in like:
        offsets.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _create(size: int, run_dir: Path) -> Path:
    name = f"megatron_kd-teacher-{os.getpid()}-{uuid.uuid4().hex}"
    for folder in (_MEMORY, run_dir):
        if not folder.is_dir() or shutil.disk_usage(folder).free < size:
            continue
        path = folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Reserved now: memory that turns out not to be there later kills the process without a word.
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            path.unlink()
            continue
        finally:
            os.close(descriptor)
        return path
    free = {str(folder): shutil.disk_usage(folder).free for folder in (_MEMORY, run_dir) if folder.is_dir()}
    raise InputError(
        f"model.teacher_device_strategy=cpu, model.share_teacher=true: the teacher needs {size} bytes, and there are "
        f"only {', '.join(f'{bytes_} in {folder}' for folder, bytes_ in free.items())}; make room, or choose another "
        "strategy"
    )


def _first_of_machine(world: Axis) -> int:
    hosts = from_all(socket.gethostname(), world.group)
    return hosts.index(hosts[world.rank])
