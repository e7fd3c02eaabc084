"""A teacher without its head, run forward only over its share of a global batch.

S sequence, B micro-batch, G teacher hidden.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from torch import Tensor

from megatron_kd.models.gpt import DistillableGPTModel, Headed, find_layer
from megatron_kd.models.packing import packed_segments
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.handover import Produced

Inputs = dict[str, Tensor]  # "tokens" and "position_ids", [B, S] each


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
        self._produced: Produced = defaultdict(list)
        model.head_function = _no_head
        for name, local_name in layers.items():
            find_layer(model, local_name, name, "model.teacher").register_forward_hook(self._keep(name))
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
        get_forward_backward_func(pp_size=self._layout.pp.size)(
            forward_step_func=partial(_forward_step, self._packed),
            data_iterator=iter(inputs),
            model=[self.model],
            num_microbatches=len(inputs),
            forward_only=True,
            **self._shape,
            **self._channel,
        )
        produced, self._produced = self._produced, defaultdict(list)
        return produced

    def _keep(self, name: str) -> Any:
        def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._produced[name].append(output[0] if isinstance(output, tuple) else output)

        return after


def _forward_step(packed: bool, inputs: Iterator[Inputs], model: DistillableGPTModel) -> tuple[Tensor, Any]:
    batch = next(inputs)
    segments = packed_segments(batch["position_ids"]) if packed else None
    return model(batch["tokens"], batch["position_ids"], None, packed_seq_params=segments), _nothing


def _no_head(model: Headed, hidden_SBG: Tensor, labels_BS: Tensor | None, loss_mask_BS: Tensor | None) -> Tensor:
    return hidden_SBG.new_zeros(())


def _nothing(output: Tensor) -> tuple[Tensor, Tensor, None]:
    """What the schedule takes for a loss: total, number of tokens, report."""
    return output, torch.zeros((), dtype=torch.int, device=output.device), None
