"""The one place where a value is put down for a module to pick up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from megatron_kd.teachers.protocol import Targets


class WithTargets(Protocol):
    """The value in flight: a micro-batch's targets, and whatever else its losses need."""

    @property
    def targets(self) -> Targets: ...


Forward = TypeVar("Forward", bound=WithTargets)


class InFlight(Generic[Forward]):
    """The forward that is under way on this rank.

    Everything else is passed as an argument. This cannot be: megatron-core hands a model's layers and head nothing but
    tensors of its own choice, ModelOpt calls the teacher with what the student was called with, and forward hooks are
    called by PyTorch. So whoever calls a model puts the forward down here for the length of the call, and a teacher's
    stand-in, the hooks on paired layers and the losses in place of the output layer pick it up.
    """

    def __init__(self) -> None:
        self._forward: Forward | None = None

    @contextmanager
    def holding(self, forward: Forward) -> Iterator[None]:
        """A block in which `forward` is under way."""
        self._forward = forward
        try:
            yield
        finally:
            self._forward = None

    @property
    def now(self) -> Forward | None:
        """The forward under way; None in a backward, or where somebody else calls the model."""
        return self._forward

    @property
    def forward(self) -> Forward:
        """The forward under way, for code that runs in no other case."""
        assert self._forward is not None, "a model is called with its forward put down"
        return self._forward
