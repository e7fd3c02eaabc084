"""How much memory a rank can use, as measured on this machine."""

from __future__ import annotations

import os

import psutil
import torch


def measured_device_memory(local_ranks: int | None = None) -> int:
    """Bytes of memory for this rank: its GPU's, or its share of the host's.

    Args:
        local_ranks: ranks on this machine; None: LOCAL_WORLD_SIZE, which torchrun sets, else 1.

    Returns:
        On CUDA, what is free on the current device, or a rank's share of it if several ranks have one device;
        elsewhere, the available host memory divided by the ranks of this machine.
    """
    ranks = local_ranks or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free) // -(-ranks // torch.cuda.device_count())
    return int(psutil.virtual_memory().available) // ranks
