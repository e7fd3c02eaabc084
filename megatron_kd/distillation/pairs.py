"""Losses between hidden states of named layers, on any pipeline stage.

The loss of a pair is computed where its layers live, as soon as the student's layer has run, and its gradient enters
the student there: the layer's output is passed on unchanged, and on the way back the pair's gradient joins the one
that comes from above. Nothing of it travels between stages but two numbers for the report. A layer inside a
recomputed block runs twice; the loss is reported by the first run and differentiated in the second.

S sequence, B micro-batch, H student hidden, G teacher hidden. Under sequence parallelism S is this rank's part.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn

from megatron_kd.distillation.config import ModelOptDistillConfig
from megatron_kd.errors import InputError
from megatron_kd.losses.hidden import HIDDEN_LOSSES
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.runtime.layout import Layout

FINAL_NORM = "decoder.final_layernorm"
_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class LayerPair:
    """Two layers that this stage holds, by their names in this stage's part of the models."""

    index: int
    student: str
    teacher: str
    loss: str
    projection: nn.Linear | None

    @property
    def loss_per_token(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of ([S, B, H], [S, B, G]), [S, B]."""
        return HIDDEN_LOSSES[self.loss]


def pairs_of_stage(
    student: DistillableGPTModel,
    teacher: DistillableGPTModel,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    seed: int,
) -> list[LayerPair]:
    """The pairs of `kd_config` whose layers are on this rank's stage, each with a projection of its own if needed.

    Raises:
        InputError: a name that no layer has, or a pair whose two layers lie on different stages.
    """
    found = []
    for index, (student_layer, teacher_layer, *loss) in enumerate(kd_config.intermediate_layer_pairs):
        here = _local_name(student_layer, student, layout), _local_name(teacher_layer, teacher, layout)
        if here == (None, None):
            continue
        if None in here:
            raise InputError(
                f"model.kd_config.intermediate_layer_pairs: {student_layer} and {teacher_layer} lie on different "
                "pipeline stages; pair layers at the same depth of both models"
            )
        local_student, local_teacher = str(here[0]), str(here[1])
        find_layer(student, local_student, student_layer, "model")
        find_layer(teacher, local_teacher, teacher_layer, "model.teacher")
        projection = _projection(student, teacher, layout, seed + index)
        found.append(LayerPair(index, local_student, local_teacher, loss[0] if loss else "cosine", projection))
    return found


def find_layer(model: nn.Module, local_name: str, name: str, field: str) -> nn.Module:
    """The submodule `local_name`; if there is none, an InputError that lists its nearest ancestor's children."""
    module = model
    for part in local_name.split("."):
        children = dict(module.named_children())
        if part not in children:
            raise InputError(
                f"model.kd_config.intermediate_layer_pairs: {field} has no layer {name}; "
                f"{part!r} is not one of {', '.join(children)}"
            )
        module = children[part]
    return module


class PairSums(NamedTuple):
    """Sums over unmasked tokens of the mean loss of all pairs: this stage's share, raw and as weighted."""

    loss: Tensor
    weighted: Tensor


class InjectedPairs:
    """Adds the losses of `pairs` to the student's gradient, by hooks on the layers."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: list[LayerPair], num_pairs: int, layout: Layout
    ) -> None:
        self._layout = layout
        self.sequence_parallel = student.config.sequence_parallel
        self._pairs = [_InjectedPair(pair, 1.0 / num_pairs) for pair in pairs]
        for injected in self._pairs:
            teacher.get_submodule(injected.pair.teacher).register_forward_hook(injected.after_teacher)
            student.get_submodule(injected.pair.student).register_forward_hook(injected.after_student)

    def begin(self, loss_mask_BS: Tensor, weight: float) -> None:
        """Announce a micro-batch: its mask, and the weight of the intermediate loss in the total."""
        for injected in self._pairs:
            injected.mask_SB, injected.weight = loss_mask_BS.transpose(0, 1), weight
            injected.tp = self._layout.tp.rank, self._layout.tp.size

    def take_sums(self) -> PairSums:
        """What has been summed up since the last call, on this rank (under sequence parallelism, of its part)."""
        zero = torch.zeros((), dtype=torch.float64, device=self._layout.device)
        loss = sum((injected.take(0) for injected in self._pairs), zero)
        return PairSums(loss, sum((injected.take(1) for injected in self._pairs), zero))


class _MicroBatch(NamedTuple):
    """What a pair's loss needs beside the student's layer."""

    target_SBG: Tensor
    mask_SB: Tensor
    weight: float


class _InjectedPair:
    """The hooks of one pair."""

    def __init__(self, pair: LayerPair, share: float) -> None:
        self.pair, self._share = pair, share
        self.mask_SB: Tensor | None = None
        self.weight = 0.0
        self.tp = (0, 1)
        self._target_SBG: Tensor | None = None
        # Micro-batches whose layer is to run again; megatron-core runs backwards in the order of the forwards.
        self._to_recompute: deque[_MicroBatch] = deque()
        self._sums: list[Any] = [0.0, 0.0]

    def after_teacher(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep the teacher's hidden states for the student's layer."""
        self._target_SBG = _hidden(output).detach()

    def after_student(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Compute the loss, report it, and hang its gradient on the output."""
        differentiating = torch.is_grad_enabled()
        if differentiating and self._to_recompute:
            batch = self._to_recompute.popleft()
            return self._inject(output, self._loss(_hidden(output), batch) * batch.weight)
        batch = self._take_micro_batch()
        loss = self._loss(_hidden(output), batch)
        for index, value in enumerate((loss.detach(), loss.detach() * batch.weight)):
            self._sums[index] = self._sums[index] + value.double()
        if differentiating:
            return self._inject(output, loss * batch.weight)
        if module.training:
            self._to_recompute.append(batch)
        return None

    def take(self, index: int) -> Tensor | float:
        """Read a sum and start it anew."""
        value, self._sums[index] = self._sums[index], 0.0
        return value

    def _take_micro_batch(self) -> _MicroBatch:
        target_SBG, self._target_SBG = self._target_SBG, None
        assert target_SBG is not None and self.mask_SB is not None, "the teacher runs first, after `begin`"
        mask_SB = self.mask_SB
        if mask_SB.shape[0] != target_SBG.shape[0]:  # this rank's part of the sequence
            mask_SB = mask_SB.chunk(self.tp[1])[self.tp[0]]
        return _MicroBatch(target_SBG, mask_SB, self.weight)

    def _loss(self, hidden_SBH: Tensor, batch: _MicroBatch) -> Tensor:
        if self.pair.projection is not None:
            hidden_SBH = self.pair.projection(hidden_SBH)
        losses_SB = self.pair.loss_per_token(hidden_SBH, batch.target_SBG)
        return (losses_SB * batch.mask_SB).sum() * self._share

    def _inject(self, output: Any, loss: Tensor) -> Any:
        if isinstance(output, tuple):
            return (_Inject.apply(output[0], loss), *output[1:])
        return _Inject.apply(output, loss)


class _Inject(torch.autograd.Function):
    """Passes `hidden` on unchanged; on the way back, `loss` gets the gradient 1 it would have in the total."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(loss))
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.saved_tensors[0]


def _hidden(output: Any) -> Tensor:
    """Layers that put out a bias or a context beside their hidden states give a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _local_name(name: str, model: DistillableGPTModel, layout: Layout) -> str | None:
    """`name` as this stage's part of the model calls it: stages count their layers from 0; None on other stages."""
    match = _LAYER.search(name)
    if match is None:
        return name if layout.is_last_stage or name != FINAL_NORM else None
    index = int(match.group()) - get_transformer_layer_offset(model.config, pp_rank=layout.pp.rank)
    if not 0 <= index < len(model.decoder.layers):
        return None
    return _LAYER.sub(str(index), name)


def _projection(
    student: DistillableGPTModel, teacher: DistillableGPTModel, layout: Layout, seed: int
) -> nn.Linear | None:
    here, there = student.config.hidden_size, teacher.config.hidden_size
    if here == there:
        return None
    linear = nn.Linear(here, there, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0.0, student.config.init_method_std, generator=generator)
        linear.bias.zero_()
    for parameter in linear.parameters():
        # Each rank sees its part of the sequence: megatron-core is to sum the gradients over the TP group.
        parameter.sequence_parallel = student.config.sequence_parallel
    return linear.to(layout.device)
