"""From a configuration to a teacher with its weights, wherever the configuration says it lives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.stages import FINAL_NORM
from megatron_kd.models.build_gpt import DTYPES, ModelShard, build_body
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.strategy import Strategy
from megatron_kd.placement.wanted import Readers, WantedLayer, read_on, wanted_layers
from megatron_kd.placement.workload import Workload
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.together import from_all, raised_together
from megatron_kd.teachers.body import TeacherBody
from megatron_kd.teachers.fill import fill, writer
from megatron_kd.teachers.handover import Handover
from megatron_kd.teachers.head import TeacherHead, empty_head, head_shard
from megatron_kd.teachers.in_flight import InFlight
from megatron_kd.teachers.in_pipeline import ColocatedTeacher
from megatron_kd.teachers.placed import PlacedTeacher
from megatron_kd.teachers.protocol import Teacher
from megatron_kd.teachers.proxy import TeacherProxy
from megatron_kd.teachers.shared_memory import is_first_of_machine, shared_tensors
from megatron_kd.teachers.streaming import must_stream, stream_layers
from megatron_kd.teachers.teacher_layout import create_teacher_layout, running_workload
from megatron_kd.teachers.transfers import Exchange, StudentRank
from megatron_kd.teachers.transport import GroupTransport


def build_teacher(
    cfg: ConfigContainer,
    model: GPTDistillationProvider,
    derived: Derived,
    layout: Layout,
    strategy: Strategy,
    in_flight: InFlight[Any],
) -> Teacher:
    """Build `model.teacher` under a strategy that supports the run. Every rank must call this.

    What stands beside the student finds a micro-batch's targets in `in_flight`.

    Raises:
        InputError: weights that do not fit, a layer that does not exist, or no room; on every rank.
    """
    if strategy.in_student_pipeline:
        layers = {FINAL_NORM, *(teacher_layer for _, teacher_layer, *_ in model.kd_config.intermediate_layer_pairs)}
        return ColocatedTeacher(_whole(cfg, model, derived, layout), layout, layers, in_flight)
    return _placed(running_workload(cfg, derived, layout), derived, layout, strategy, in_flight)


def _whole(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout
) -> DistillableGPTModel:
    """A teacher sharded like the student, its head included."""
    teacher = _body(model, derived, layout, layout.device, shared=False)
    head, tied = None, model.teacher.share_embeddings_and_output_weights
    if layout.is_last_stage and not (tied and layout.is_first_stage):
        head = _empty_head(model, derived, layout)
    _fill(cfg, model, derived, layout, teacher, head, stages=layout.pp.size)
    if layout.is_last_stage:
        weight = teacher.embedding.word_embeddings.weight if head is None else head
        teacher.output_layer.weight = nn.Parameter(weight, requires_grad=False)
    return teacher


def _placed(
    run: Workload, derived: Derived, layout: Layout, strategy: Strategy, in_flight: InFlight[Any]
) -> PlacedTeacher:
    """A teacher with a layout of its own: its body on the ranks of `strategy`, its head with the student's."""
    cfg, model, provider = run.cfg, run.model, run.teacher
    shared = strategy.in_host_memory and model.share_teacher
    grid = strategy.grid(run)
    wanted = wanted_layers(run.readers, provider.num_layers, grid)
    exchange = _exchange(run, layout, grid, wanted)
    teacher_layout = create_teacher_layout(grid, layout)
    body_model = None
    if teacher_layout is not None:
        memory = torch.device("cpu") if strategy.in_host_memory else layout.device
        body_model = _body(model, derived, teacher_layout, memory, shared=shared)
    head = _empty_head(model, derived, layout) if layout.is_last_stage else None
    mine = body_model if not shared or is_first_of_machine(layout.world) else None
    _fill(cfg, model, derived, layout, mine, head, stages=grid.pp)
    dist.barrier(layout.world.group)  # no rank reads shared memory before it is filled
    body = None
    with raised_together():
        if body_model is not None and strategy.in_host_memory and must_stream(layout.device):
            stream_layers(body_model, layout.device)
        if body_model is not None and teacher_layout is not None:
            body = TeacherBody(
                body_model,
                teacher_layout,
                {layer.name: layer.local_name for layer in wanted if layer.teacher_stage == teacher_layout.pp.rank},
                seq_length=model.seq_length,
                micro_batch_size=exchange.teacher_micro_batch_size,
                packed=cfg.dataset.packed_sequence,
            )
    dtype = DTYPES[derived.teacher_dtype or derived.student_dtype]
    handover = Handover(exchange, GroupTransport(layout.world.group), provider.hidden_size, dtype, layout.device)
    teacher_head = None
    if head is not None:
        teacher_head = TeacherHead(head, _vocab_size(derived), layout, model.sequence_parallel)
    proxies = _proxies(run.readers, layout, teacher_head, in_flight)
    return PlacedTeacher(strategy.name, body, proxies, _rounds(handover, derived.num_microbatches), layout)


def _exchange(run: Workload, layout: Layout, grid: Grid, wanted: tuple[WantedLayer, ...]) -> Exchange:
    """The hand-over of a whole round of micro-batches."""
    return Exchange(
        grid=grid,
        students=_students(layout),
        layers=wanted,
        num_microbatches=run.micro_batches_a_round(grid),
        micro_batch_size=run.micro_batch_size,
        teacher_micro_batch_size=run.teacher_micro_batch_size,
        seq_length=run.model.seq_length,
        student_shards=layout.tp.size if run.model.sequence_parallel else 1,
        teacher_shards=grid.tp if run.teacher.sequence_parallel and grid.tp > 1 else 1,
    )


def _rounds(handover: Handover, num_microbatches: int) -> list[Handover]:
    """The hand-overs of a step: whole rounds, and one of the micro-batches that are left."""
    full, rest = divmod(num_microbatches, handover.exchange.num_microbatches)
    rounds = [handover] * full
    if rest:
        rounds.append(replace(handover, exchange=replace(handover.exchange, num_microbatches=rest)))
    return rounds


def _vocab_size(derived: Derived) -> int:
    assert derived.teacher_vocab_size is not None, "the run has a teacher"
    return derived.teacher_vocab_size


def _students(layout: Layout) -> tuple[StudentRank, ...]:
    mine = StudentRank(layout.rank, layout.dp.rank, layout.pp.rank, layout.tp.rank)
    return tuple(from_all(mine, layout.world.group))


def _body(
    model: GPTDistillationProvider, derived: Derived, layout: Layout, memory: torch.device, *, shared: bool
) -> DistillableGPTModel:
    """This rank's part of the teacher in `layout`, without values, in the memory of a device."""

    def allocate(like: list[Tensor]) -> list[Tensor]:
        if shared:
            return shared_tensors(like, derived.run_dir, layout.world)
        return [torch.empty_like(tensor, device=memory) for tensor in like]

    shard = ModelShard(
        provider=model.teacher,
        layout=layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=_vocab_size(derived),
        dtype=derived.teacher_dtype or derived.student_dtype,
    )
    return build_body(shard, int8=model.teacher_quantization == "int8", allocate=allocate)


def _empty_head(model: GPTDistillationProvider, derived: Derived, layout: Layout) -> Tensor:
    dtype = DTYPES[derived.teacher_dtype or derived.student_dtype]
    return empty_head(derived.padded_vocab_size, model.teacher.hidden_size, dtype, layout)


def _fill(
    cfg: ConfigContainer,
    model: GPTDistillationProvider,
    derived: Derived,
    layout: Layout,
    body: DistillableGPTModel | None,
    head: Tensor | None,
    *,
    stages: int,
) -> None:
    """Give body and head, if this rank has them to fill, their weights; the teacher has `stages` pipeline stages."""
    provider = model.teacher
    heads = [head_shard(head, layout, tied=provider.share_embeddings_and_output_weights)] if head is not None else []
    int8_layers = provider.num_layers // stages if model.teacher_quantization == "int8" else 0
    fill(body, heads, writer(cfg, provider, _vocab_size(derived)), int8_layers=int8_layers)


def _proxies(
    read: Readers, layout: Layout, head: TeacherHead | None, in_flight: InFlight[Any]
) -> dict[int, TeacherProxy]:
    proxies = {}
    for chunk in range(layout.chunks):
        if here := read_on(read, layout.pp.rank, chunk):
            proxies[chunk] = TeacherProxy(here, head if chunk == layout.chunks - 1 else None, in_flight)
    return proxies
