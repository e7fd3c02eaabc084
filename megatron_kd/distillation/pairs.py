"""Losses between hidden states of named layers, on any pipeline stage.

The loss of a pair is computed where its layers live, as soon as the student's layer has run, and its gradient enters
the student there: the layer's output is passed on unchanged, and on the way back the pair's gradient joins the one
that comes from above. Nothing of it travels between stages but two numbers for the report. A layer inside a
recomputed block runs twice; the loss is reported by the first run and differentiated in the second.

S sequence, B micro-batch, H student hidden, G teacher hidden. Under sequence parallelism S is this rank's part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.stages import place_of
from megatron_kd.errors import InputError
from megatron_kd.losses.hidden import HIDDEN_LOSSES
from megatron_kd.models.gpt import DistillableGPTModel, find_layer
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.protocol import Teacher


@dataclass(frozen=True)
class LayerPair:
    """Two layers, the student's in chunk `chunk` of this rank, by their names in what this rank has of both models."""

    index: int
    chunk: int
    student: str
    teacher: str
    loss: str
    projection: nn.Linear | None

    @property
    def loss_per_token(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of ([S, B, H], [S, B, G]), [S, B]."""
        return HIDDEN_LOSSES[self.loss]


def pairs_of_rank(
    students: list[DistillableGPTModel],
    teacher: Teacher,
    kd_config: ModelOptDistillConfig,
    layout: Layout,
    seed: int,
) -> list[LayerPair]:
    """The pairs of `kd_config` whose student layer is on this rank, each with a projection of its own if needed.

    Raises:
        InputError: a name that no layer has, or a pair whose two layers lie on different stages of one pipeline.
    """
    found = []
    for index, (student_layer, teacher_layer, *loss) in enumerate(kd_config.intermediate_layer_pairs):
        here = _chunk_and_name(student_layer, students, layout)
        name = teacher.name_in_module(teacher_layer)
        if teacher.in_student_pipeline and (here is None) != (name is None):
            raise InputError(
                f"model.kd_config.intermediate_layer_pairs: {student_layer} and {teacher_layer} lie on different "
                "pipeline stages; pair layers at the same depth of both models, or set "
                "model.teacher_device_strategy=balanced"
            )
        if here is None:
            continue
        chunk, local_name = here
        find_layer(students[chunk], local_name, student_layer, "model")
        module = teacher.module(chunk)
        assert module is not None and name is not None, "the teacher serves each chunk that has a paired layer"
        find_layer(module, name, teacher_layer, "model.teacher")
        projection = _projection(students[0], teacher.hidden_size, layout, seed + index)
        found.append(LayerPair(index, chunk, local_name, name, loss[0] if loss else "cosine", projection))
    return found


class PairSums(NamedTuple):
    """Sums over unmasked tokens of the mean loss of all pairs: this stage's share, raw and as weighted."""

    loss: Tensor
    weighted: Tensor


class InjectedPairs:
    """Adds the losses of `pairs` to the student's gradient, by hooks on the layers."""

    def __init__(
        self,
        students: list[DistillableGPTModel],
        teacher: Teacher,
        pairs: list[LayerPair],
        num_pairs: int,
        layout: Layout,
    ) -> None:
        self._layout = layout
        self.sequence_parallel = students[0].config.sequence_parallel
        self._pairs = [_InjectedPair(pair, 1.0 / num_pairs) for pair in pairs]
        for injected in self._pairs:
            pair, module = injected.pair, teacher.module(injected.pair.chunk)
            assert module is not None
            module.get_submodule(pair.teacher).register_forward_hook(injected.after_teacher)
            students[pair.chunk].get_submodule(pair.student).register_forward_hook(injected.after_student)

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


def _chunk_and_name(layer: str, students: list[DistillableGPTModel], layout: Layout) -> tuple[int, str] | None:
    """The chunk of this rank that holds the student's `layer`, and its name there; None on other stages."""
    place = place_of(layer, num_layers=students[0].config.num_layers, stages=layout.pp.size, chunks=layout.chunks)
    return (place.chunk, place.local_name) if place is not None and place.stage == layout.pp.rank else None


def _projection(student: DistillableGPTModel, there: int, layout: Layout, seed: int) -> nn.Linear | None:
    here = student.config.hidden_size
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
