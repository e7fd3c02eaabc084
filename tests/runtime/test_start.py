"""Starting ranks: what hardware is chosen, and that everything is put back at the end."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from megatron_kd.errors import InputError
from megatron_kd.runtime.start import choose_hardware, running_ranks
from tests.ranks import run_ranks

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")


@without_cuda
def test_a_machine_without_cuda_uses_gloo() -> None:
    for requested in (None, "gloo"):
        hardware = choose_hardware(requested)
        assert (hardware.backend, hardware.device) == ("gloo", torch.device("cpu"))


@without_cuda
def test_nccl_without_cuda_is_refused() -> None:
    with pytest.raises(InputError, match=r"dist\.distributed_backend=nccl needs a CUDA device.*use gloo"):
        choose_hardware("nccl")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_each_local_rank_has_a_gpu_of_its_own(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for local_rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        hardware = choose_hardware(None)
        assert (hardware.backend, hardware.device) == ("nccl", torch.device("cuda", local_rank))


def test_more_ranks_than_gpus_are_refused_by_nccl(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"3 ranks.*2 CUDA device\(s\).*--nproc_per_node=2"):
        choose_hardware(None)
    assert choose_hardware("gloo").device == torch.device("cuda", 0)


@without_cuda
def test_one_process_runs_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    for _ in range(2):  # a second run in the same process
        with running_ranks(
            tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1, num_threads=1
        ) as layout:
            assert (layout.rank, layout.world_size, torch.get_num_threads()) == (0, 1, 1)
            assert dist.is_initialized()
        assert not dist.is_initialized()
    torch.set_num_threads(threads)


def start_twice() -> list[bool]:
    """On a rank: groups that were there before are left, those that were made are taken down, also after errors."""
    from megatron.core import parallel_state

    from megatron_kd.runtime.timeouts import set_group_timeouts

    seen = []
    with running_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, seed=1) as layout:
        seen += [layout.tp.size == 2, parallel_state.model_parallel_is_initialized()]
    with (
        pytest.raises(ZeroDivisionError),
        running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=2, seed=1) as layout,
    ):
        seen += [layout.pp.size == 2]
        raise ZeroDivisionError
    seen += [not parallel_state.model_parallel_is_initialized(), dist.is_initialized()]
    set_group_timeouts(120)
    return seen


def test_ranks_that_already_talk_may_start_runs() -> None:
    assert run_ranks(2, start_twice) == [[True] * 5] * 2


def timeout_of_groups() -> set[timedelta]:
    """On a rank: the timeouts of all process groups while a run starts."""
    from torch.distributed import distributed_c10d

    with running_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=1, seed=1, timeout_s=77):
        groups = list(distributed_c10d._world.pg_map)
        return {group._get_backend(torch.device("cpu")).options._timeout for group in groups}


def test_groups_start_with_the_startup_timeout() -> None:
    assert run_ranks(2, timeout_of_groups) == [{timedelta(seconds=77)}] * 2
