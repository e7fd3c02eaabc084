"""Calls of megatron-core to CUDA land on the CPU; all others are left alone."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from megatron_kd.runtime import cpu_backend

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the backend is a no-op on CUDA machines")


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    cpu_backend.install()


@pytest.mark.parametrize("name", ["empty", "zeros", "ones", "rand", "randn"])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 1), "cpu", None])
def test_factories_make_cpu_tensors(name: str, device: object) -> None:
    tensor = getattr(torch, name)(2, 3, device=device, dtype=torch.bfloat16)
    assert (tensor.device.type, tensor.shape, tensor.dtype) == ("cpu", (2, 3), torch.bfloat16)


def test_other_factories_make_cpu_tensors() -> None:
    assert torch.tensor([1, 2], device="cuda").tolist() == [1, 2]
    assert torch.full((2,), 3.0, device="cuda").tolist() == [3.0, 3.0]
    assert torch.arange(3, device=torch.cuda.current_device()).tolist() == [0, 1, 2]
    assert torch.empty_like(torch.ones(2), device="cuda").device.type == "cpu"
    assert torch.cuda.FloatTensor([1.5]).dtype == torch.float32
    assert torch.cuda.LongTensor([7]).tolist() == [7]


def test_other_devices_are_left_alone() -> None:
    assert torch.empty(2, device="meta").device.type == "meta"
    assert torch.ones(2).to("meta").device.type == "meta"


@pytest.mark.slow
def test_a_device_context_still_works() -> None:
    """In a process of its own: torch lists its factories once, at the first such context."""
    code = (
        "import torch; from megatron_kd.runtime import cpu_backend; cpu_backend.install()\n"
        "with torch.device('meta'):\n"
        "    made = [torch.empty(2), torch.nn.Linear(2, 2).weight, torch.ones(2, device='cuda')]\n"
        "print(*[tensor.device.type for tensor in made])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == "meta meta cpu\n"


def test_moving_to_cuda_is_no_move() -> None:
    tensor, module = torch.ones(2), torch.nn.Linear(2, 2)
    assert tensor.cuda() is tensor
    assert module.cuda() is module
    assert tensor.to("cuda", torch.float64).dtype == torch.float64
    assert tensor.to(device=torch.device("cuda")).device.type == "cpu"


def test_streams_and_events_do_nothing() -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.current_stream())
        stream.wait_event(stream.record_event(event))
    event.synchronize()
    torch.cuda.synchronize()
    assert event.query()


def test_the_cuda_generator_is_the_cpu_generator() -> None:
    torch.manual_seed(5)
    plain = torch.rand(3)
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.rand(3), plain)
    state = torch.cuda.get_rng_state()
    drawn = torch.rand(3)
    torch.cuda.manual_seed_all(99)  # torch.manual_seed calls it: must not seed a second time
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), drawn)


def test_precisions_are_told_apart_as_on_cuda() -> None:
    assert torch.ones(1).type() == "torch.cuda.FloatTensor"
    assert torch.ones(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.ones(1).type(torch.float64).dtype == torch.float64
    assert torch.ones(1).type("torch.cuda.HalfTensor").dtype == torch.float16


def test_installing_twice_changes_nothing() -> None:
    before = (torch.empty, torch.Tensor.to, torch.cuda.Stream, torch.Tensor.type)
    cpu_backend.install()
    assert before == (torch.empty, torch.Tensor.to, torch.cuda.Stream, torch.Tensor.type)


def test_cuda_stays_unavailable() -> None:
    assert not torch.cuda.is_available()


def test_a_rank_alone_in_its_group_does_not_copy_a_buffer_onto_itself() -> None:
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    collective = cpu_backend._unless_alone(lambda output, input, group, async_op=False: calls.append((output, input)))
    alone, two = SimpleNamespace(size=lambda: 1), SimpleNamespace(size=lambda: 2)
    buffer = torch.arange(4.0)
    assert collective(buffer[:], buffer, group=alone) is None
    assert not calls
    collective(buffer[:2], buffer, group=two)
    collective(torch.empty(4), buffer, group=alone)
    collective(buffer[:], buffer, group=alone, async_op=True)  # who asks for a handle gets one
    assert len(calls) == 3
