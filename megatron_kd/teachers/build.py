"""From a configuration to a teacher with its weights, wherever the configuration says it lives."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import Derived
from megatron_kd.distillation.provider import GPTDistillationProvider
from megatron_kd.models.build import DTYPES, build_body
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.stages import LayerPlace
from megatron_kd.models.weights import draw
from megatron_kd.runtime.agreement import raised_together
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.balanced import balanced_grid
from megatron_kd.teachers.body import TeacherBody
from megatron_kd.teachers.colocated import ColocatedTeacher
from megatron_kd.teachers.cpu import every_rank_grid
from megatron_kd.teachers.gpu0 import one_rank_grid
from megatron_kd.teachers.grid import TeacherGrid, create_teacher_layout
from megatron_kd.teachers.handover import Handover
from megatron_kd.teachers.head import TeacherHead, empty_head, head_shard
from megatron_kd.teachers.placed import PlacedTeacher
from megatron_kd.teachers.placement import Teacher
from megatron_kd.teachers.proxy import TeacherProxy
from megatron_kd.teachers.rounds import micro_batches_a_round
from megatron_kd.teachers.shared_memory import is_first_of_machine, shared_tensors
from megatron_kd.teachers.transfers import Exchange, StudentRank
from megatron_kd.teachers.wanted import local_names, readers, wanted_layers
from megatron_kd.training.weights import load_in_place, load_weights


def build_teacher(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout, strategy: str
) -> Teacher:
    """Build `model.teacher` under a strategy that can serve the run. Every rank must call this.

    Raises:
        InputError: weights that do not fit, a layer that does not exist, or no room; on every rank.
    """
    if strategy == "colocated":
        return ColocatedTeacher(_whole_model(cfg, model, derived, layout), layout)
    return _placed(cfg, model, derived, layout, strategy)


def _grid(model: GPTDistillationProvider, derived: Derived, strategy: str) -> TeacherGrid:
    """The ranks of the teacher under a strategy other than `colocated`."""
    if strategy == "balanced":
        ranks_per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return balanced_grid(model, derived.world_size, ranks_per_machine, derived.padded_vocab_size)
    return one_rank_grid(model) if strategy == "gpu0" else every_rank_grid(derived.world_size)


def _whole_model(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout
) -> DistillableGPTModel:
    provider = model.teacher
    teacher = provider.provide(
        layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=_vocab_size(derived),
        dtype=derived.teacher_dtype or derived.student_dtype,
        seed=_seed(cfg) if provider.init == "random" else None,
    )
    if provider.checkpoint:
        load_weights([teacher], provider.checkpoint, "model.teacher.checkpoint")
    return teacher


def _placed(
    cfg: ConfigContainer, model: GPTDistillationProvider, derived: Derived, layout: Layout, strategy: str
) -> PlacedTeacher:
    provider, shared = model.teacher, strategy == "cpu" and model.share_teacher
    dtype = DTYPES[derived.teacher_dtype or derived.student_dtype]
    grid = _grid(model, derived, strategy)
    read = readers(model.kd_config, model, layout)
    wanted = wanted_layers(read, provider, grid)
    rows, teacher_rows = cfg.train.micro_batch_size, model.teacher_micro_batch_size or cfg.train.micro_batch_size
    a_round = micro_batches_a_round(derived.num_microbatches, rows * layout.dp.size, grid.dp, teacher_rows, grid.pp)
    exchange = Exchange(
        grid=grid,
        students=_students(layout),
        layers=wanted,
        num_microbatches=a_round,
        micro_batch_size=rows,
        teacher_micro_batch_size=teacher_rows,
        seq_length=model.seq_length,
        student_shards=layout.tp.size if model.sequence_parallel else 1,
        teacher_shards=grid.tp if provider.sequence_parallel and grid.tp > 1 else 1,
    )
    teacher_layout = create_teacher_layout(grid, layout.device)
    body_model = _body(model, derived, teacher_layout, shared) if teacher_layout is not None else None
    head = _head(model, derived, layout)
    _fill(cfg, model, derived, layout, body_model, head, shared)
    body = None
    with raised_together():
        if body_model is not None and teacher_layout is not None:
            body = TeacherBody(
                body_model,
                teacher_layout,
                local_names(wanted, provider, grid, teacher_layout.pp.rank),
                seq_length=model.seq_length,
                micro_batch_size=exchange.teacher_micro_batch_size,
            )
    full, rest = divmod(derived.num_microbatches, a_round)
    rounds = [Handover(exchange, provider.hidden_size, dtype, layout.device)] * full
    if rest:
        rounds.append(replace(rounds[0], exchange=replace(exchange, num_microbatches=rest)))
    proxies = _proxies(read, layout, head, provider.hidden_size)
    return PlacedTeacher(strategy, body, proxies, rounds, layout)


def _seed(cfg: ConfigContainer) -> int:
    return cfg.rng.seed + 1  # not the student's: a teacher of the student's shape would be the student


def _vocab_size(derived: Derived) -> int:
    assert derived.teacher_vocab_size is not None, "the run has a teacher"
    return derived.teacher_vocab_size


def _students(layout: Layout) -> tuple[StudentRank, ...]:
    mine = StudentRank(layout.rank, layout.dp.rank, layout.pp.rank, layout.tp.rank)
    everyone: list[StudentRank | None] = [None] * layout.world_size
    dist.all_gather_object(everyone, mine)
    return tuple(student for student in everyone if student is not None)


def _body(
    model: GPTDistillationProvider, derived: Derived, teacher_layout: Layout, shared: bool
) -> DistillableGPTModel:
    def allocate(like: list[Tensor]) -> list[Tensor]:
        if shared:
            return shared_tensors(like, derived.run_dir)
        return [torch.empty_like(tensor, device=teacher_layout.device) for tensor in like]

    return build_body(
        model.teacher,
        teacher_layout,
        padded_vocab_size=derived.padded_vocab_size,
        vocab_size=_vocab_size(derived),
        dtype=derived.teacher_dtype or derived.student_dtype,
        allocate=allocate,
    )


def _head(model: GPTDistillationProvider, derived: Derived, layout: Layout) -> TeacherHead | None:
    if not layout.is_last_stage:
        return None
    dtype = DTYPES[derived.teacher_dtype or derived.student_dtype]
    weight = empty_head(derived.padded_vocab_size, model.teacher.hidden_size, dtype, layout)
    return TeacherHead(weight, _vocab_size(derived), layout, model.sequence_parallel)


def _fill(
    cfg: ConfigContainer,
    model: GPTDistillationProvider,
    derived: Derived,
    layout: Layout,
    body: DistillableGPTModel | None,
    head: TeacherHead | None,
    shared: bool,
) -> None:
    """Give body and head their weights, drawn or read into the memory they have; each rank its own shards."""
    provider = model.teacher
    shards: list[ShardedTensor] = []
    mine = is_first_of_machine() if shared else True
    if body is not None and mine:
        state = body.sharded_state_dict()
        apply_factories(state)
        shards += [shard for shard in nested_values(state) if isinstance(shard, ShardedTensor)]
        shards = [shard for shard in shards if shard.data is not None and not shard.data.is_meta]
    if head is not None:
        shards.append(head_shard(head.weight, layout, tied=provider.share_embeddings_and_output_weights))
    if provider.checkpoint:
        load_in_place(shards, provider.checkpoint, "model.teacher.checkpoint", _vocab_size(derived))
    else:
        for shard in shards:
            draw(
                shard,
                seed=_seed(cfg),
                std=provider.init_method_std,
                num_layers=provider.num_layers,
                vocab_size=_vocab_size(derived),
            )
    dist.barrier()  # nobody reads shared memory before it is filled


def _proxies(
    read: dict[str, set[LayerPlace]], layout: Layout, head: TeacherHead | None, hidden_size: int
) -> dict[int, TeacherProxy]:
    proxies = {}
    for chunk in range(layout.chunks):
        here = sorted(
            name for name, places in read.items() if any((p.stage, p.chunk) == (layout.pp.rank, chunk) for p in places)
        )
        if here:
            proxies[chunk] = TeacherProxy(here, head if chunk == layout.chunks - 1 else None, hidden_size)
    return proxies
