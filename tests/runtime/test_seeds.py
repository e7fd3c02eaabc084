"""Random state: one seed one stream, saved and put back whole."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch

from tests.ranks import run_ranks


def draws() -> dict[str, Any]:
    """A few numbers of every generator a run draws from."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        sharded = torch.rand(3)
    return {
        "python": [random.random(), random.gauss(0, 1)],
        "numpy": [*np.random.rand(3), np.random.randn()],
        "torch": torch.rand(3).tolist(),
        "sharded": sharded.tolist(),
    }


def seeded_draws(seed: int) -> dict[str, Any]:
    """On a rank: what a freshly seeded run draws."""
    from megatron_kd.runtime.start import running_ranks

    world = torch.distributed.get_world_size()
    with running_ranks(tensor_model_parallel_size=world, pipeline_model_parallel_size=1, seed=seed):
        return draws()


def test_ranks_draw_alike_but_for_what_is_sharded_over_them() -> None:
    first, second = run_ranks(2, seeded_draws, 5)
    assert first.pop("sharded") != second.pop("sharded")
    assert first == second


def test_a_seed_fixes_every_generator() -> None:
    (first,), (again,), (other,) = (run_ranks(1, seeded_draws, seed) for seed in (5, 5, 6))
    assert first == again
    assert all(first[name] != other[name] for name in first)


def draws_before_and_after_a_round_trip() -> tuple[dict, dict]:
    """On a rank: draws that follow a state, and draws after the state went through a file without pickled classes."""
    from megatron_kd.runtime.seeds import random_state, set_random_state
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=5):
        draws()  # leaves a spare Gaussian behind in python's and numpy's generators
        file = io.BytesIO()
        torch.save(random_state(), file)
        before = draws()
        file.seek(0)
        set_random_state(torch.load(file, weights_only=True))
        return before, draws()


def test_state_goes_through_a_file_and_back() -> None:
    ((before, after),) = run_ranks(1, draws_before_and_after_a_round_trip)
    assert before == after
