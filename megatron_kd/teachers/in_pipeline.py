"""`colocated`: the teacher is sharded like the student, and runs in the student's pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from megatron_kd.config.stages import place_of
from megatron_kd.models.gpt import DistillableGPTModel, find_layer, hidden_states_of
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.placement.colocated import Colocated
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Targets


class ColocatedTeacher:
    """See `Teacher`. Each data-parallel replica of the student has a copy of the teacher.

    Args:
        model: this rank's part, frozen.
        layout: the student's, and the teacher's.
        layers: of the whole teacher, whose outputs the losses read.
        in_flight: the student's forward, which runs the teacher first.

    Raises:
        InputError: a layer that does not exist.
    """

    strategy = Colocated.name
    in_student_pipeline = Colocated.in_student_pipeline

    def __init__(
        self, model: DistillableGPTModel, layout: Layout, layers: Iterable[str], in_flight: InFlight[Any]
    ) -> None:
        self.model, self._layout, self._in_flight = model.requires_grad_(False).eval(), layout, in_flight
        self.hidden_size = model.config.hidden_size
        for layer in layers:
            if (name := self.name_in_module(layer)) is not None:
                find_layer(model, name, layer, "model.teacher").register_forward_hook(partial(self._keep, layer))

    def deliver(self, micro_batches: Sequence[MicroBatch]) -> list[Targets]:
        """Targets without hidden states: the layers add them when the student's forward runs the teacher."""
        return [Targets(micro_batch.sample_ids) for micro_batch in micro_batches]

    def module(self, chunk: int) -> nn.Module:
        """See `Teacher`."""
        return self.model

    def name_in_module(self, layer: str) -> str | None:
        """See `Teacher`."""
        place = place_of(layer, num_layers=self.model.config.num_layers, stages=self._layout.pp.size)
        return place.local_name if place is not None and place.stage == self._layout.pp.rank else None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Teacher`."""
        yield from self.model.named_parameters()

    def _keep(self, layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if (forward := self._in_flight.now) is not None:
            forward.targets.hidden[layer] = hidden_states_of(output)
