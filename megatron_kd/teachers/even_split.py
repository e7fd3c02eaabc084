"""placeholder: replaced by the planning branch"""

from __future__ import annotations

from megatron_kd.models.provider import GPTModelProvider


def even_split(provider: GPTModelProvider, world_size: int, ranks_per_machine: int) -> tuple[int, int, int]:
    pp = max(n for n in range(1, world_size + 1) if world_size % n == 0 and provider.num_layers % n == 0)
    return 1, pp, world_size // pp
