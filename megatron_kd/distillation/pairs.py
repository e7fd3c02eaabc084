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
from megatron_kd.distillation.forward import Forward
from megatron_kd.errors import InputError
from megatron_kd.losses.hidden import HIDDEN_LOSSES
from megatron_kd.models.gpt import DistillableGPTModel, find_layer, hidden_states_of
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.protocol import Teacher


@dataclass(frozen=True)
class LayerPair:
    """Two layers whose outputs a loss compares.

    Attributes:
        index: of the pair in the configuration.
        chunk: of this rank, which holds the student's layer.
        student, teacher: the layers' names in what this rank has of both models.
        target: the teacher's layer, as the whole teacher calls it.
        loss: a name in `HIDDEN_LOSSES`.
        projection: from the student's width to the teacher's; None where they are equal.
    """

    index: int
    chunk: int
    student: str
    teacher: str
    target: str
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
        InputError: a name that no layer has, or a pair whose two layers are on different stages of one pipeline.
    """
    found = []
    for index, (student_layer, teacher_layer, *loss) in enumerate(kd_config.intermediate_layer_pairs):
        here = _chunk_and_name(student_layer, students, layout)
        name = teacher.name_in_module(teacher_layer)
        if teacher.in_student_pipeline and (here is None) != (name is None):
            raise InputError(
                f"model.kd_config.intermediate_layer_pairs: {student_layer} and {teacher_layer} are on different "
                "pipeline stages; pair layers at the same depth of both models, or set "
                "model.teacher_device_strategy=balanced"
            )
        if here is None:
            continue
        chunk, local_name = here
        find_layer(students[chunk], local_name, student_layer, "model")
        module = teacher.module(chunk)
        assert module is not None and name is not None, "the teacher has a module for each chunk with a paired layer"
        find_layer(module, name, teacher_layer, "model.teacher")
        projection = _projection(students[0], teacher.hidden_size, layout, seed + index)
        kind = loss[0] if loss else "cosine"
        found.append(LayerPair(index, chunk, local_name, name, teacher_layer, kind, projection))
    return found


def inject_pairs(
    students: list[DistillableGPTModel],
    pairs: list[LayerPair],
    num_pairs: int,
    layout: Layout,
    in_flight: InFlight[Forward],
) -> None:
    """Add the losses of `pairs` to the student's gradient, by hooks on the layers.

    Args:
        students: this rank's chunks.
        pairs: this rank's.
        num_pairs: of the whole student; the intermediate loss is their mean.
        layout: the student's.
        in_flight: where the hooks find the forward.
    """
    for pair in pairs:
        student = students[pair.chunk]
        injected = _InjectedPair(pair, 1.0 / num_pairs, layout, student.config.sequence_parallel, in_flight)
        student.get_submodule(pair.student).register_forward_hook(injected.after_layer)


class _Work(NamedTuple):
    """The inputs of a pair's loss beyond the output of the student's layer."""

    target_SBG: Tensor
    mask_SB: Tensor
    weight: float


class _InjectedPair:
    """The hook of one pair."""

    def __init__(
        self, pair: LayerPair, share: float, layout: Layout, sequence_parallel: bool, in_flight: InFlight[Forward]
    ) -> None:
        self._pair, self._share, self._in_flight = pair, share, in_flight
        self._tp, self._sequence_parallel = layout.tp, sequence_parallel
        # A recomputed layer runs again in the backward, where no forward is under way, so its work has to wait here.
        # megatron-core runs backwards in the order of the forwards.
        self._to_recompute: deque[_Work] = deque()

    def after_layer(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Compute the loss, add it to the step's sums, and hang its gradient on the output."""
        forward = self._in_flight.now
        if forward is None:
            return self._recomputed(output)
        work = self._work(forward)
        loss = self._loss(output, work)
        # Of one tensor-parallel rank, unless each has its part of the sequence.
        if self._tp.rank == 0 or self._sequence_parallel:
            forward.sums.add_pair(self._pair.index, loss.detach(), loss.detach() * work.weight)
        if torch.is_grad_enabled():
            return _injected(output, loss * work.weight)
        if module.training:
            self._to_recompute.append(work)
        return None

    def _recomputed(self, output: Any) -> Any:
        if not self._to_recompute:  # somebody else calls the model
            return None
        work = self._to_recompute.popleft()
        return _injected(output, self._loss(output, work) * work.weight)

    def _work(self, forward: Forward) -> _Work:
        target_SBG = forward.targets.hidden[self._pair.target]
        mask_SB = forward.micro_batch.loss_mask.transpose(0, 1)
        if mask_SB.shape[0] != target_SBG.shape[0]:  # this rank's part of the sequence
            mask_SB = mask_SB.chunk(self._tp.size)[self._tp.rank]
        return _Work(target_SBG, mask_SB, forward.weights.intermediate)

    def _loss(self, output: Any, work: _Work) -> Tensor:
        hidden_SBH = hidden_states_of(output)
        if self._pair.projection is not None:
            hidden_SBH = self._pair.projection(hidden_SBH)
        losses_SB = self._pair.loss_per_token(hidden_SBH, work.target_SBG)
        return (losses_SB * work.mask_SB).sum() * self._share


def _injected(output: Any, loss: Tensor) -> Any:
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
