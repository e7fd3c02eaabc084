"""What ModelOpt is given as the teacher where the real one is elsewhere: its ports, replaying what was delivered.

S sequence, B micro-batch, G teacher hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from megatron_kd.config.stages import FINAL_NORM
from megatron_kd.models.gpt import HeadFunction
from megatron_kd.teachers.head import TeacherHead


class TeacherProxy(nn.Module):
    """A module with the teacher's layer names, global ones, and no parameters.

    `forward` sends the delivered hidden states of the selected micro-batch through its ports, for hooks to see, and
    then through the head, where the student's chunk has one.

    Args:
        layers: names of the layers to have ports for.
        head: the teacher's, for the chunk with the student's; a plain value, so that nothing that walks over
            parameters finds it.
        hidden_size: G.
    """

    def __init__(self, layers: list[str], head: TeacherHead | None, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.head = hidden_size, head
        self.head_function: HeadFunction | None = None
        self._layers = list(layers)
        self._delivered: dict[str, list[Tensor]] = {}
        self._index = 0
        for name in self._layers:
            _add_port(self, name, _Port())
        if head is not None:
            self.output_layer = _LogitsPort(head)

    @property
    def true_vocab_size(self) -> int | None:
        """The teacher's number of token ids; None for a chunk without its head."""
        return None if self.head is None else self.head.true_vocab_size

    def deliver(self, states: dict[str, list[Tensor]]) -> None:
        """Take one step's hidden states, by layer and micro-batch."""
        self._delivered = {name: list(states[name]) for name in self._layers}

    def select(self, index: int) -> None:
        """Say which micro-batch the next forward is of."""
        self._index = index

    def head_weight(self) -> Tensor:
        """This rank's rows of the teacher's head, [V, G] sharded over V."""
        assert self.head is not None, "the head is with the student's"
        return self.head.weight

    def forward(self, *args: Any, labels: Tensor | None = None, loss_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Called with what the student is called with."""
        for name in self._layers:
            hidden_SBG = self.get_submodule(name)(self._take(name))
            if name == FINAL_NORM:
                final_SBG = hidden_SBG
        if self.head is None:
            return None
        if self.head_function is not None:
            return self.head_function(self, final_SBG, labels, loss_mask)
        return self.output_layer(final_SBG)

    def _take(self, name: str) -> Tensor:
        states = self._delivered[name]
        taken, states[self._index] = states[self._index], None
        assert taken is not None, f"micro-batch {self._index} has been read before"
        return taken


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
