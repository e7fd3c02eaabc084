"""A body that computes on a GPU from weights in host memory: at any time the device holds two of its layers.

While one layer computes, the next is copied on a stream of its own. The embedding is looked up on the host, and the
final norm stays on the device.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from megatron_kd.errors import InputError
from megatron_kd.models.gpt import DistillableGPTModel

_ALIGNMENT = 256  # bytes

Slots = list[tuple[nn.Module, str, nn.Parameter]]  # a layer's parameters: whose, under which name, on the host


def must_stream(device: torch.device) -> bool:
    """Whether a body in host memory has to be copied to the device that computes."""
    return device.type != "cpu"


def stream_layers(model: DistillableGPTModel, device: torch.device) -> LayerStream:
    """Make a frozen body in host memory compute on `device`. Its inputs may be there; its outputs will be.

    Args:
        model: without a head.
        device: on the CPU, layers are copied too, which is useful only for tests.

    Raises:
        InputError: the system does not let that much memory be locked.
    """
    final_norm = model.decoder.final_layernorm
    if final_norm is not None:
        for name, parameter in final_norm.named_parameters():
            final_norm._parameters[name] = nn.Parameter(parameter.to(device), requires_grad=False)
    if model.pre_process:
        model.embedding.register_forward_pre_hook(_to_host, with_kwargs=True)
        model.embedding.register_forward_hook(lambda module, inputs, output: output.to(device))
    if device.type == "cuda":
        _pin(list(model.parameters()))
    return LayerStream(list(model.decoder.layers), device)


class LayerStream:
    """The two places on the device that layers take turns in; moved by hooks of the layers.

    Args:
        layers: frozen, in host memory, always called in this order.
        device: where they are to compute.

    Attributes:
        staging: the two places, bytes.
    """

    def __init__(self, layers: list[nn.Module], device: torch.device) -> None:
        self._layers = [_slots(layer) for layer in layers]
        size = max(_packed_bytes(slots) for slots in self._layers)
        self.staging = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._place = 0  # that the next copy goes to
        self._copied: dict[int, list[Tensor]] = {}  # layers that are there, or on their way
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._before(index))
            # Also after an error, which would leave the layer without its weights of the host.
            layer.register_forward_hook(self._after(index), always_call=True)

    def _before(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if index not in self._copied:  # the first call, or the first after an error
                self._copied.clear()
                self._copy(index)
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            for (owner, name, _), tensor in zip(self._layers[index], self._copied.pop(index), strict=True):
                owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
            # After the last layer comes the first, of the next micro-batch.
            self._copy((index + 1) % len(self._layers))

        return hook

    def _after(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for owner, name, parameter in self._layers[index]:
                owner._parameters[name] = parameter

        return hook

    def _copy(self, index: int) -> None:
        """Start copying a layer into the staging buffer that the layer before the current one used."""
        if self._stream is None:
            self._copied[index] = _copy_into(self.staging[self._place], self._layers[index])
        else:
            # The kernels launched so far include the last use of that buffer.
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            with torch.cuda.stream(self._stream):
                self._copied[index] = _copy_into(self.staging[self._place], self._layers[index])
        self._place = 1 - self._place


def _slots(layer: nn.Module) -> Slots:
    return [
        (owner, name, parameter)
        for owner in layer.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]


def _packed_bytes(slots: Slots) -> int:
    return sum(-(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT for *_, parameter in slots)


def _copy_into(place: Tensor, slots: Slots) -> list[Tensor]:
    """Copy a layer's parameters into `place`, bytes, one after the other; returns the copies."""
    copies, start = [], 0
    for *_, parameter in slots:
        copy = place[start : start + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        copies.append(copy.copy_(parameter.detach(), non_blocking=True))
        start += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
    return copies


def _to_host(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict]:
    def moved(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    return tuple(map(moved, inputs)), {name: moved(value) for name, value in named.items()}


def _pin(tensors: list[nn.Parameter]) -> None:
    """Lock the host memory of `tensors`, so that the device can read it asynchronously.

    Each process registers its own view of shared memory; the pages are locked once.

    Raises:
        InputError: the system does not allow it.
    """
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.device.type == "cpu"}
    cudart = torch.cuda.cudart()
    for address, storage in memory.items():
        if (error := int(cudart.cudaHostRegister(address, storage.nbytes(), 0))) != 0:
            raise InputError(
                f"model.teacher_device_strategy=cpu: {storage.nbytes()} bytes of the teacher cannot be locked in host "
                f"memory (CUDA error {error}); allow the process to lock more, or choose another strategy"
            )
        weakref.finalize(storage, cudart.cudaHostUnregister, address).atexit = False
