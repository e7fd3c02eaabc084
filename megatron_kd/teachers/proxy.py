"""The module that ModelOpt is given as the teacher where the real one is elsewhere: its ports, replaying its targets.

S sequence, B micro-batch, G teacher hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from megatron_kd.config.stages import FINAL_NORM
from megatron_kd.models.gpt import HeadFunction
from megatron_kd.teachers.head import TeacherHead
from megatron_kd.teachers.in_flight import InFlight


class TeacherProxy(nn.Module):
    """A module with the teacher's layer names, global ones, and no parameters.

    `forward` sends the targets of the forward under way through its ports, for hooks to see, and then through the head,
    where the student's chunk has one.

    Args:
        layers: names of the layers to have ports for.
        head: the teacher's, for the chunk with the student's; a plain value, so that nothing that walks over
            parameters finds it.
        in_flight: the student's forward, whose targets are replayed.
    """

    def __init__(self, layers: list[str], head: TeacherHead | None, in_flight: InFlight[Any]) -> None:
        super().__init__()
        self.head, self._layers, self._in_flight = head, list(layers), in_flight
        self.head_function: HeadFunction | None = None
        for name in self._layers:
            _add_port(self, name, _Port())
        if head is not None:
            self.output_layer = _LogitsPort(head)

    @property
    def true_vocab_size(self) -> int | None:
        """The teacher's number of token ids; None for a chunk without its head."""
        return None if self.head is None else self.head.true_vocab_size

    def head_weight(self) -> Tensor:
        """This rank's rows of the teacher's head, [V, G] sharded over V."""
        assert self.head is not None, "the head is with the student's"
        return self.head.weight

    def logits(self, hidden_SBG: Tensor) -> Tensor:
        """[S, B, V] sharded over V, of the whole sequence."""
        return self.output_layer(hidden_SBG)[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called with what the student is called with."""
        hidden = self._in_flight.forward.targets.hidden
        outputs = {name: self.get_submodule(name)(hidden[name]) for name in self._layers}
        if self.head is None:
            return None
        head = self.head_function or TeacherProxy.logits
        return head(self, outputs[FINAL_NORM])


class _Port(nn.Module):
    def forward(self, hidden_SBG: Tensor) -> Tensor:
        return hidden_SBG


class _LogitsPort(nn.Module):
    """Returns what megatron-core's output layer does: logits and a bias."""

    def __init__(self, head: TeacherHead) -> None:
        super().__init__()
        self._head = head

    def forward(self, hidden_SBG: Tensor) -> tuple[Tensor, None]:
        return self._head.logits(hidden_SBG), None


def _add_port(module: nn.Module, name: str, port: nn.Module) -> None:
    *parents, last = name.split(".")
    for part in parents:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.add_module(last, port)
