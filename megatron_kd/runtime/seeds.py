"""Random state of every generator that a run draws from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, model_parallel_cuda_manual_seed


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and megatron-core's tensor-parallel generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def reseed(seed: int, step: int) -> None:
    """Seed all generators for the steps after `step`, where there is no saved state to continue from.

    The seed is a function of the run's seed, the step and, by megatron-core's trackers, the tensor-parallel rank: draws
    that tensor-parallel ranks share stay equal on them, as with `seed_everything`.
    """
    seed_everything(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]) >> 1)


def random_state() -> dict[str, Any]:
    """The state of all generators of this rank, as tensors and plain values: a checkpoint unpickles nothing else."""
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = legacy
    version, internal, gauss = random.getstate()
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "megatron": {name: s.clone() for name, s in get_cuda_rng_tracker().get_states().items()},
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the state that `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["megatron"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
