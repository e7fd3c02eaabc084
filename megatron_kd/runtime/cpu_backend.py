"""Lets megatron-core run on a machine without CUDA. On a CUDA machine `install()` does nothing.

megatron-core hard-codes CUDA in a small number of ways: `torch.cuda.current_device()` as a device argument,
`device="cuda"` literals in a few factory calls, `.cuda()`, streams and events, CUDA random state, and
comparisons with strings such as "torch.cuda.FloatTensor". Each is redirected to the CPU here and nowhere else.

Factories are wrapped one by one rather than with a `TorchFunctionMode`, which would add a Python frame to every torch
operation of the run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

CPU = torch.device("cpu")

_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "randint", "empty_like")
_LEGACY_TENSORS = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8,
    "BoolTensor": torch.bool,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
}


def install() -> None:
    """Redirect what megatron-core hard-codes to CUDA. Must run before megatron-core computes; idempotent."""
    if torch.cuda.is_available() or getattr(torch.cuda, "_redirected_to_cpu", False):
        return
    _redirect_devices()
    _redirect_factories()
    _redirect_streams()
    _redirect_random_state()
    _redirect_type_strings()
    _redirect_missing_kernels()
    _skip_collectives_of_one()
    torch.cuda._redirected_to_cpu = True


def _redirect_devices() -> None:
    """`torch.cuda.current_device()` is the CPU; `.cuda()` and `.to("cuda")` change nothing."""
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.set_device = lambda device: None
    cuda.empty_cache = lambda: None
    cuda.nvtx.range_push = lambda message: None
    cuda.nvtx.range_pop = lambda: None
    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    tensor.cuda = lambda self, *args, **kwargs: self
    module.cuda = lambda self, *args, **kwargs: self
    original_to = torch.Tensor.to

    @functools.wraps(original_to)
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and _is_cuda(args[0]):
            args = (CPU, *args[1:])
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        return original_to(self, *args, **kwargs)

    tensor.to = to


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapper


def _redirect_factories() -> None:
    # `with torch.device("meta")` recognises factories by identity, in a list that torch builds once and caches. Built
    # after the wrapping, it would hold the wrappers, which call originals that the list does not know.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name, dtype in _LEGACY_TENSORS.items():
        setattr(torch.cuda, name, functools.partial(_legacy_tensor, dtype))


def _legacy_tensor(dtype: torch.dtype, values: Any = ()) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


class _Stream:
    """A stream of the CPU, which has none: an operation is complete when its call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> _Event:
        return event or _Event()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class _Event:
    """An event that has always happened, for the same reason."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def wait(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


def _redirect_streams() -> None:
    cuda: Any = torch.cuda
    stream = _Stream()
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.set_stream = lambda stream: None
    cuda.synchronize = lambda *args, **kwargs: None


def _redirect_random_state() -> None:
    """CUDA's generator is the CPU's: megatron-core's trackers of tensor-parallel random state swap its state."""
    cuda: Any = torch.cuda
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    # torch.manual_seed calls this after seeding the CPU generator, which must not be seeded a second time.
    cuda.manual_seed_all = lambda seed: None

    from megatron.core.tensor_parallel import random as mcore_random

    mcore_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    mcore_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _redirect_type_strings() -> None:
    # The optimizers distinguish precisions by `param.type() == "torch.cuda.FloatTensor"`.
    original_type = torch.Tensor.type
    tensor: Any = torch.Tensor

    @functools.wraps(original_type)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return original_type(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return original_type(self, dtype, *args, **kwargs)

    tensor.type = type_

    # These hold torch's CUDA tensor types, and `isinstance` with those raises in a build of torch without CUDA.
    from megatron.core.transformer import module as mcore_module

    mcore_module._FLOAT_TYPES = (torch.FloatTensor,)
    mcore_module._HALF_TYPES = (torch.HalfTensor,)
    mcore_module._BF16_TYPES = (torch.BFloat16Tensor,)


def _redirect_missing_kernels() -> None:
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):  # undefined without TransformerEngine in 0.16.1
        moe_utils.te_general_gemm = None


def _skip_collectives_of_one() -> None:
    # In a group of one rank, the shard is the whole buffer, and NCCL does nothing. gloo copies: all gradients twice and
    # all parameters once per step.
    from megatron.core.distributed import param_and_grad_buffer

    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        setattr(param_and_grad_buffer, name, _unless_alone(getattr(param_and_grad_buffer, name)))


def _unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective`, which fills `output` from `input`, without the work of copying a buffer onto itself."""

    @functools.wraps(collective)
    def wrapper(output: torch.Tensor, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        in_place = output.data_ptr() == input.data_ptr() and output.numel() == input.numel()
        if in_place and not kwargs.get("async_op") and kwargs["group"].size() == 1:
            return None
        return collective(output, input, *args, **kwargs)

    return wrapper
