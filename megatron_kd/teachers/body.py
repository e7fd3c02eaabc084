"""A teacher without its head, run forward only over its share of a global batch.

S sequence, B micro-batch, G teacher hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from megatron_kd.models.gpt import DistillableGPTModel, find_layer, hidden_states_of, no_head
from megatron_kd.models.packing import packed_segments
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.handover import Produced


class Inputs(NamedTuple):
    """Inputs of a teacher forward, [B, S] each."""

    tokens: Tensor
    position_ids: Tensor


class TeacherBody:
    """This rank's part of a teacher in a layout of its own.

    Args:
        model: frozen and in eval mode; without an output layer.
        layout: its place among the teacher's ranks.
        layers: the global name of each layer of this part whose output is wanted, and its name in this part.
        seq_length: S.
        micro_batch_size: B.
        packed: whether rows hold several samples; position ids then say where each begins.

    Raises:
        InputError: a layer that does not exist.
    """

    def __init__(
        self,
        model: DistillableGPTModel,
        layout: Layout,
        layers: dict[str, str],
        *,
        seq_length: int,
        micro_batch_size: int,
        packed: bool,
    ) -> None:
        self.model, self._layout, self._packed = model, layout, packed
        self._shape = {"seq_length": seq_length, "micro_batch_size": micro_batch_size}
        self._layers = {name: find_layer(model, local, name, "model.teacher") for name, local in layers.items()}
        model.head_function = no_head
        if layout.pp.size > 1:
            self._channel = {
                "p2p_communicator": P2PCommunicator(pp_group=layout.groups.pp, config=model.config),
                "pg_collection": layout.groups,
            }
        else:
            self._channel = {"pg_collection": layout.groups}

    @torch.no_grad()
    def __call__(self, inputs: list[Inputs]) -> Produced:
        """Run all of `inputs`; every rank of this copy of the teacher must call this with the same ones.

        Returns:
            The outputs of the wanted layers of this part, one [S, B, G] each (S divided over tensor-parallel ranks
            under sequence parallelism).
        """
        if not inputs:  # more copies of the teacher than sequences
            return {}
        with self._collected() as produced:
            get_forward_backward_func(pp_size=self._layout.pp.size)(
                forward_step_func=partial(_forward_step, self._packed),
                data_iterator=iter(inputs),
                model=[self.model],
                num_microbatches=len(inputs),
                forward_only=True,
                **self._shape,
                **self._channel,
            )
        return produced

    @contextmanager
    def _collected(self) -> Iterator[Produced]:
        """Collect the outputs of the wanted layers within the block."""
        produced: Produced = {name: [] for name in self._layers}
        hooks = [layer.register_forward_hook(partial(_keep, produced[name])) for name, layer in self._layers.items()]
        try:
            yield produced
        finally:
            for hook in hooks:
                hook.remove()


def _keep(outputs: list[Tensor], module: torch.nn.Module, inputs: Any, output: Any) -> None:
    outputs.append(hidden_states_of(output))


def _forward_step(packed: bool, inputs: Iterator[Inputs], model: DistillableGPTModel) -> tuple[Tensor, Any]:
    tokens_BS, position_ids_BS = next(inputs)
    segments = packed_segments(position_ids_BS) if packed else None
    return model(tokens_BS, position_ids_BS, None, packed_seq_params=segments), _nothing


def _nothing(output: Tensor) -> tuple[Tensor, Tensor, None]:
    """A dummy loss for the schedule: total, number of tokens, report."""
    return output, torch.zeros((), dtype=torch.int, device=output.device), None
