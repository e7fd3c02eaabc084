"""One rank of one side of `teacher_placement.py`: a run of the trainer, its steps and its memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.sections import (
    CheckpointConfig,
    DatasetConfig,
    LoggerConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
)
from megatron_kd.config.stages import FINAL_NORM
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.runtime.layout import Layout
from megatron_kd.runtime.start import running_ranks
from megatron_kd.teachers.placed import PlacedTeacher
from megatron_kd.teachers.transfers import Exchange
from megatron_kd.training.run_state import Run, build_run
from megatron_kd.training.step import train_step
from tools.bench import host
from tools.bench.placement.figures import BODY, HEAD, STUDENT, Holding, RankMemory, Side, Sizes, Spent, Traffic
from tools.bench.rank_sets import Answers
from tools.bench.whole_step import Architecture

WARM_UP = 2  # steps before anything is measured: first allocations, lazily made communicators


@contextmanager
def bench_rank(sizes: Sizes, side: Side) -> Iterator[Answers]:
    """This rank's part of a side, after its first steps; every rank must enter it."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(sizes, side, folder)
        with running_ranks(
            tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
            pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
            seed=cfg.rng.seed,
            num_threads=1,
        ) as layout:
            before = host.pss()
            run = build_run(cfg, derived(cfg, layout.world_size, sizes.vocab), layout)
            batches = micro_batches(sizes, layout)
            for _ in range(WARM_UP):
                train_step(run, batches)
            yield {
                "step": lambda: timed_step(run, batches),
                "memory": lambda: memory(run, before),
                "traffic": lambda: traffic(run),
            }


def config(sizes: Sizes, side: Side, folder: str) -> ConfigContainer:
    """The trainer's configuration of a side."""
    student_layout = _layout(sizes.student_layout)
    teacher_layout = {"colocated": student_layout, "balanced": _layout(sizes.teacher_layout)}.get(side.strategy, {})
    model = GPTDistillationProvider.from_student(
        _provider(sizes.student, sizes, student_layout),
        teacher=_provider(sizes.teacher, sizes, teacher_layout),
        kd_config=ModelOptDistillConfig(),
        teacher_device_strategy=side.strategy,
        share_teacher=side.share,
        teacher_micro_batch_size=side.teacher_batch,
    )
    return ConfigContainer(
        model=model,
        train=TrainConfig(train_iters=100_000, global_batch_size=sizes.batch, micro_batch_size=sizes.micro_batch),
        validation=ValidationConfig(eval_interval=0, eval_iters=0),
        scheduler=SchedulerConfig(lr_decay_style="constant"),
        dataset=DatasetConfig(mock=True),
        tokenizer=TokenizerConfig(tokenizer_type="null", vocab_size=sizes.vocab),
        checkpoint=CheckpointConfig(save=False),
        logger=LoggerConfig(run_dir=folder, tensorboard=False, progress="off"),
    )


def _provider(text: str, sizes: Sizes, layout: dict[str, int]) -> GPTModelProvider:
    shape = Architecture.parse(text)
    return GPTModelProvider(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        seq_length=sizes.seq,
        vocab_size=sizes.vocab,
        init="random",
        **layout,  # type: ignore[arg-type]
    )


def _layout(text: str) -> dict[str, int]:
    tp, pp = map(int, text.lower().split("x"))
    return {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}


def micro_batches(sizes: Sizes, layout: Layout) -> Iterator[MicroBatch]:
    """An endless stream of mock ones, different on each data-parallel rank."""
    generator = torch.Generator().manual_seed(layout.dp.rank)
    shape = sizes.micro_batch, sizes.seq
    while True:
        tokens_BS = torch.randint(sizes.vocab, shape, generator=generator)
        yield MicroBatch(
            tokens=tokens_BS,
            labels=tokens_BS.roll(-1, dims=1),
            position_ids=torch.arange(sizes.seq).expand(shape).contiguous(),
            loss_mask=torch.ones(shape),
            sample_ids=tuple(range(sizes.micro_batch)),
        )


def timed_step(run: Run, batches: Iterator[MicroBatch]) -> Spent:
    """One step, which all ranks begin together."""
    dist.barrier()
    start, before = time.perf_counter(), host.thread_time()
    train_step(run, batches)
    seconds, after = time.perf_counter() - start, host.thread_time()
    return Spent(seconds, max(seconds - (after.run - before.run) - (after.queued - before.queued), 0.0))


def memory(run: Run, before: int) -> RankMemory:
    """Of this rank; `before`: its `Pss` before anything was built. Every rank must call this."""
    dist.barrier()  # the ranks share pages, so none may be ahead
    shared = host.shared_mappings()
    assert run.teacher is not None
    named = [(HEAD if name.startswith("output_layer.") else BODY, tensor) for name, tensor in run.teacher.tensors()]
    # A co-located teacher is a submodule of its student; it needs no gradients.
    named += [(STUDENT, value) for student in run.students for value in student.parameters() if value.requires_grad]
    holdings = tuple(Holding(part, tensor.nbytes, _memory(tensor, shared)) for part, tensor in named)
    files = {holding.memory[0] for holding in holdings}
    return RankMemory(
        holdings, pss=host.pss() - before, pss_shared=sum(mapping.pss for mapping in shared if mapping.file in files)
    )


def _memory(tensor: Tensor, shared: list[host.SharedMapping]) -> tuple[object, ...]:
    address = tensor.data_ptr()
    for mapping in shared:
        if mapping.start <= address < mapping.stop:
            return mapping.file, mapping.offset + address - mapping.start
    return os.getpid(), address


def traffic(run: Run) -> Traffic:
    """A step's, from this rank to others."""
    teacher = run.teacher
    if not isinstance(teacher, PlacedTeacher):
        return Traffic(0, 0)
    exchanges = [handover.exchange for handover in teacher.rounds]
    tokens = sum(_tokens_sent(exchange) for exchange in exchanges)
    assert teacher.bytes_sent % run.step == 0
    width = run.derived.padded_vocab_size // run.layout.tp.size
    return Traffic(teacher.bytes_sent // run.step, tokens * width * teacher.rounds[0].dtype.itemsize)


def _tokens_sent(exchange: Exchange) -> int:
    """Final hidden states from this rank to others in a round, in tokens."""
    found = 0
    for student in exchange.students:
        for piece in exchange.pieces(dist.get_rank(), student) if student.rank != dist.get_rank() else ():
            if piece.layer == FINAL_NORM:
                positions, rows = piece.positions_and_rows
                found += positions * rows
    return found
