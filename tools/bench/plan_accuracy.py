"""How near `megatron-kd plan` comes: its estimate beside the bytes that a real step allocates, rank by rank.

    torchrun --nproc_per_node=2 tools/bench/plan_accuracy.py --recipe recipes/tiny/distill_tiny.py \
        model.vocab_size=2048 model.tensor_model_parallel_size=2 model.teacher.tensor_model_parallel_size=2

Runs on CPUs, with random weights and mock tokens. Model state is every parameter, gradient buffer and optimizer
tensor; the peak is that of the second step, whose storages are counted as they come and go.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.derived import derived
from megatron_kd.errors import ConfigError, MegatronKDError
from megatron_kd.models.micro_batch import MicroBatch
from megatron_kd.placement.registry import strategy_named
from megatron_kd.planning.memory import MOMENTS, rank_memory
from megatron_kd.planning.scenario import Scenario
from megatron_kd.resolve.configuration import load_config
from megatron_kd.resolve.recipe_files import load_recipe
from megatron_kd.runtime.start import running_ranks
from megatron_kd.teachers.teacher_layout import running_workload
from megatron_kd.training.run_state import Run, build_run
from megatron_kd.training.step import train_step
from tools.bench.allocations import AllocationCounter

_BENCH = (
    "checkpoint={save: false, pretrained_checkpoint: null}",
    "dataset={data_path: null, train_data_path: null, valid_data_path: null, mock: true}",
    "tokenizer={tokenizer_type: 'null', tokenizer_model: null}",
    "model.init=random",
    "model.teacher={checkpoint: null, init: random}",
    "logger.run_dir=runs/bench/plan_accuracy",
)


@dataclass(frozen=True)
class Compared:
    """Bytes of one rank, estimated and measured."""

    estimated_state: int
    measured_state: int
    estimated_peak: int
    measured_peak: int
    moment: str

    @property
    def state_error(self) -> float:
        """Relative error of the model state."""
        return self.estimated_state / self.measured_state - 1

    @property
    def peak_error(self) -> float:
        """Relative error of the step's peak."""
        return self.estimated_peak / self.measured_peak - 1


def compare(cfg: ConfigContainer) -> list[Compared]:
    """On a rank: build `cfg`, run two steps, and compare. `cfg` is a distillation with a known vocabulary size.

    Returns:
        The figures of all ranks.
    """
    with running_ranks(
        tensor_model_parallel_size=cfg.model.tensor_model_parallel_size,
        pipeline_model_parallel_size=cfg.model.pipeline_model_parallel_size,
        seed=cfg.rng.seed,
        backend="gloo",
    ) as layout:
        with AllocationCounter() as counter:
            run = build_run(cfg, derived(cfg, layout.world_size), layout)
            assert run.teacher is not None
            batches = made_up(cfg)
            train_step(run, batches)  # optimizer state is made by the first step
            counter.forget_peak()
            train_step(run, batches)
        scenario = Scenario(running_workload(cfg, run.derived, layout), strategy_named(run.teacher.strategy))
        memory = rank_memory(scenario, layout.rank)
        # A rank sees the whole of the copy in host memory that it computes from, its own or the machine's.
        ranks_per_copy = 1 if scenario.run.model.share_teacher else scenario.run.ranks_per_machine
        mapped = scenario.strategy.host_bytes(scenario.run) // ranks_per_copy
        estimated = memory.state + mapped, memory.peak.total + mapped
        numbers = estimated[0], state_bytes(run), estimated[1], counter.peak_bytes, MOMENTS.index(memory.peak.name)
        mine = torch.tensor(numbers)
        everyones = [torch.empty_like(mine) for _ in range(layout.world_size)]
        dist.all_gather(everyones, mine)
        return [Compared(*values, moment=MOMENTS[index]) for *values, index in map(torch.Tensor.tolist, everyones)]


def state_bytes(run: Run) -> int:
    """Bytes of all that outlives a step: weights, gradient buffers, optimizer state, the teacher."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _state(run)}
    return sum(storages.values())


def made_up(cfg: ConfigContainer) -> Iterator[MicroBatch]:
    """The same micro-batch for ever."""
    rows, length = cfg.train.micro_batch_size, cfg.model.seq_length
    ids = torch.arange(rows * length).view(rows, length) % (cfg.model.vocab_size or 1)
    positions = torch.arange(length).repeat(rows, 1)
    mask = torch.ones(rows, length)
    return itertools.repeat(MicroBatch(ids, ids, positions, mask, sample_ids=tuple(range(rows))))


def _state(run: Run) -> Iterator[torch.Tensor]:
    for student in run.students:
        yield from student.parameters()
    if run.teacher is not None:
        yield from (tensor for _, tensor in run.teacher.tensors())
    for chunk in run.chunks:
        for buffer in chunk.buffers:
            yield buffer.grad_data
    for part in getattr(run.optimizer, "chained_optimizers", [run.optimizer]):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for values in part.optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, torch.Tensor))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line for each rank on rank 0, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--recipe", default="recipes/tiny/distill_tiny.py")
    args, overrides = parser.parse_known_args(argv)
    try:
        found = compare(load_config(load_recipe(args.recipe), [*_BENCH, *overrides]))
    except MegatronKDError as error:
        for line in error.lines if isinstance(error, ConfigError) else [str(error)]:
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    if os.environ.get("RANK", "0") == "0":
        print(report(found))
    return 0


def report(found: list[Compared]) -> str:
    """A line for each rank, in megabytes."""
    lines = ["rank     state: plan  measured     error     peak: plan  measured     error  at the time of"]
    for rank, one in enumerate(found):
        state = f"{one.estimated_state / 1e6:15.2f} {one.measured_state / 1e6:9.2f} {one.state_error:+9.2%}"
        peak = f"{one.estimated_peak / 1e6:14.2f} {one.measured_peak / 1e6:9.2f} {one.peak_error:+9.2%}"
        lines.append(f"{rank:4} {state} {peak}  {one.moment}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
