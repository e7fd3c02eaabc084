"""Starting and stopping the ranks of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_kd.errors import InputError
from megatron_kd.runtime.layout import Layout, create_layout, destroy_layout
from megatron_kd.runtime.seeds import seed_everything
from megatron_kd.runtime.timeouts import set_group_timeouts


@dataclass(frozen=True)
class Hardware:
    """This rank's device, and the backend of its process groups."""

    backend: str
    device: torch.device


def choose_hardware(requested_backend: str | None) -> Hardware:
    """cuda + nccl where the machine has CUDA, cpu + gloo elsewhere; `requested_backend` overrides.

    Raises:
        InputError: nccl requested on a machine without CUDA, or more local ranks than devices.
    """
    cuda = torch.cuda.is_available()
    backend = requested_backend or ("nccl" if cuda else "gloo")
    if backend == "nccl" and not cuda:
        raise InputError("dist.distributed_backend=nccl needs a CUDA device, and this machine has none: use gloo")
    if not cuda:
        return Hardware(backend, torch.device("cpu"))
    local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= devices and backend == "nccl":
        raise InputError(
            f"{os.environ.get('LOCAL_WORLD_SIZE')} ranks were started on this machine, which has {devices} CUDA "
            f"device(s): start torchrun with --nproc_per_node={devices}"
        )
    return Hardware(backend, torch.device("cuda", local_rank % devices))


@contextmanager
def running_ranks(
    *,
    tensor_model_parallel_size: int,
    pipeline_model_parallel_size: int,
    virtual_pipeline_model_parallel_size: int | None = None,
    seed: int,
    backend: str | None = None,
    timeout_s: int = 1800,
    num_threads: int | None = None,
) -> Iterator[Layout]:
    """Initialise this rank of the run, and shut it down at the end of the block.

    Works under torchrun, as a single process started by hand, and where `torch.distributed` is already initialised,
    which then stays initialised.

    Args:
        tensor_model_parallel_size, pipeline_model_parallel_size: the layout; what is left is data parallel.
        virtual_pipeline_model_parallel_size: parts that each stage's layers are cut into; None for one.
        seed: of python, numpy, torch and megatron-core's generators.
        backend: "nccl", "gloo" or None for what the machine has.
        timeout_s: how long ranks wait for each other while starting.
        num_threads: CPU threads; None divides the machine's cores among its ranks.
    """
    hardware = choose_hardware(backend)
    _set_threads(num_threads, hardware.device)
    ours = not dist.is_initialized()
    if ours:
        _init_process_group(hardware, timeout_s)
    layout = create_layout(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_pipeline_model_parallel_size,
        device=hardware.device,
    )
    set_group_timeouts(timeout_s)  # megatron-core gives its groups a timeout of its own
    try:
        seed_everything(seed)
        yield layout
    finally:
        destroy_layout()
        if ours:
            dist.destroy_process_group()


def _init_process_group(hardware: Hardware, timeout_s: int) -> None:
    if hardware.device.type == "cuda":
        torch.cuda.set_device(hardware.device)
    timeout = timedelta(seconds=timeout_s)
    if "RANK" in os.environ:
        dist.init_process_group(hardware.backend, timeout=timeout)
    else:  # a single process without torchrun, which sets no address for a store to listen on
        dist.init_process_group(hardware.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def _set_threads(num_threads: int | None, device: torch.device) -> None:
    """Set torch's CPU threads: its default, one per core in every rank, oversubscribes a machine with several ranks."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num_threads:
        torch.set_num_threads(num_threads)
    elif device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
