"""Memory and time of the distillation losses beside ModelOpt's LogitsKLLoss, as ratios within one run.

    python tools/bench/loss_memory_speed.py                             # CPU: V = 32768, TP1 and TP2, fp32 and bf16
    python tools/bench/loss_memory_speed.py --tokens 1024 --vocab 131072
    python tools/bench/loss_memory_speed.py --device cuda --tp 1 --tokens 8192 --vocab 128256 --student-hidden 4096

Prints a markdown table with the goals in its head, and says where a figure misses one. Memory is the peak of tensors
allocated beyond the inputs of the step, by counting the allocations of a run on tensors without data, so neither what
else the machine does nor its memory plays a part; the head's gradient is in buffers made before on all sides and is
not counted. Time is the median (range) over `--repeats` rounds, in which the sides take turns, of the
ratio of one round's forward and backward; with `--repeats 0` there are none. `--processor-time` takes the processor's
seconds of rank 0 instead of wall time, for a busy machine; use one thread per rank then: waiting threads count too.

- materialised / ModelOpt: both get the same logits [N, V/tp].
- fused / (logits + ModelOpt): both get the same hidden states and heads, and make the student's hidden gradient and
  add to the head's gradient.
- fused extra MB, of N and of 2 N tokens: what is added is the hidden states' gradient, none of it logits.

On a CPU without bfloat16 units, where plain bfloat16 products take minutes, the fused form's time in bfloat16 stands
alone. With such units they are faster than float32 ones, which are what the fused form makes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from megatron.core import parallel_state
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.allocations import AllocationCounter
from tools.bench.loss_sides import Step

HEADER = """\
| TP | dtype | N | V | materialised / ModelOpt memory | time | fused / (logits + ModelOpt) memory | time \
| fused extra MB, N | 2 N | fused s | of which 4 products |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| goal | | | | fp32 <= 0.200, bf16 <= 0.167 | fp32 <= 0.95, bf16 <= 0.60 | <= 0.050 | - | - | no logits | - | - |"""
MEMORY_GOAL = {4: 1 / 5, 2: 1 / 6}  # materialised / ModelOpt, by bytes of an element
TIME_GOAL = {4: 0.95, 2: 0.60}
FUSED_MEMORY_GOAL = 1 / 20


@dataclass(frozen=True)
class Peaks:
    """Bytes allocated by each side, and by the fused form with twice the tokens."""

    modelopt: int
    materialised: int
    logits_and_modelopt: int
    fused: int
    fused_of_twice: int


@dataclass(frozen=True)
class Seconds:
    """Of each side, one for each round; `logits_and_modelopt` and `products` may be empty."""

    modelopt: list[float]
    materialised: list[float]
    logits_and_modelopt: list[float]
    fused: list[float]
    products: list[float]


def counted_peaks(args: argparse.Namespace, dtype: torch.dtype, world: int) -> Peaks:
    """Peaks of rank 0 of `world`, on tensors and with collectives that have no data."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    parallel_state.initialize_model_parallel(world, create_gloo_process_groups=False)
    with FakeTensorMode():
        step = Step(args, dtype, parallel_state.get_tensor_model_parallel_group() if world > 1 else None)
        on_logits = [_peak_bytes(side) for side in _given_logits(step)]
        fused = [_peak_bytes(step.logits_and_modelopt), _peak_bytes(step.fused)]
        hidden = step.hidden.detach().repeat(2, 1).requires_grad_()
        teacher_hidden = step.teacher_hidden.repeat(2, 1)
        of_twice = _peak_bytes(lambda: step.fused_of(hidden, teacher_hidden))
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return Peaks(*on_logits, *fused, of_twice)


def _peak_bytes(side: Callable[[], Any]) -> int:
    with AllocationCounter() as counter:
        side()
    return counter.peak_bytes


def _given_logits(step: Step) -> list[Callable[[], None]]:
    """ModelOpt's loss and the materialised form, on the same logits."""
    student, teacher = step.random_logits()

    def given_logits(side: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            student.grad = None
            side(student, teacher)

        return run

    return [given_logits(step.of_modelopt), given_logits(step.materialised)]


def measured_seconds(args: argparse.Namespace, dtype: torch.dtype, group: dist.ProcessGroup | None = None) -> Seconds:
    """Seconds of all sides on this rank."""
    step = Step(args, dtype, group)
    clock = time.process_time if args.processor_time else time.perf_counter
    on_logits = _interleaved_seconds(_given_logits(step), args.repeats, clock)
    if dtype == torch.bfloat16 and args.slow_bfloat16:
        return Seconds(*on_logits, [], *_interleaved_seconds([step.fused], args.repeats, clock), [])
    sides = [step.logits_and_modelopt, step.fused, step.matmuls]
    return Seconds(*on_logits, *_interleaved_seconds(sides, args.repeats, clock))


def _interleaved_seconds(
    sides: list[Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each side, `repeats` of them; the sides take turns, so that a change of the load hits all."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for side, times in zip(sides, seconds, strict=True):
            start = clock()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times.append(clock() - start)
    return seconds


def slow_bfloat16() -> bool:
    """Whether this CPU needs longer for a bfloat16 product than for a float32 one, of a hidden gradient's shape."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(128, 4096, dtype=dtype), torch.ones(4096, 512, dtype=dtype)
        seconds[dtype] = min(_interleaved_seconds([lambda a=a, b=b: torch.mm(a, b)], 5, time.process_time)[0])
    return seconds[torch.bfloat16] > 1.5 * seconds[torch.float32]


def seconds_on_ranks(args: argparse.Namespace, dtype: torch.dtype, world: int) -> Seconds:
    """Seconds of rank 0 of `world` ranks."""
    if world == 1:
        return measured_seconds(args, dtype)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, (world, folder, args, dtype), nprocs=world)
        return Seconds(**json.loads((Path(folder) / "seconds").read_text()))


def _on_rank(rank: int, world: int, folder: str, args: argparse.Namespace, dtype: torch.dtype) -> None:
    torch.set_num_threads(max(1, args.threads // world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(world)  # where ModelOpt looks for its group
    seconds = measured_seconds(args, dtype, parallel_state.get_tensor_model_parallel_group())
    if rank == 0:
        (Path(folder) / "seconds").write_text(json.dumps(asdict(seconds)))
    dist.destroy_process_group()


def row(args: argparse.Namespace, dtype: torch.dtype, world: int, peaks: Peaks, seconds: Seconds) -> str:
    """One line of the table."""
    cells = [
        *(str(world), str(dtype)[6:], str(args.tokens), str(args.vocab)),
        of_memory(peaks.materialised, peaks.modelopt, MEMORY_GOAL[dtype.itemsize]),
        of_time(seconds.materialised, seconds.modelopt, TIME_GOAL[dtype.itemsize]),
        of_memory(peaks.fused, peaks.logits_and_modelopt, FUSED_MEMORY_GOAL),
        of_time(seconds.fused, seconds.logits_and_modelopt),
        *(f"{peaks.fused / 1e6:.0f}", f"{peaks.fused_of_twice / 1e6:.0f}"),
        f"{statistics.median(seconds.fused):.2f}" if seconds.fused else "-",
        of_time(seconds.products, seconds.fused),
    ]
    return f"| {' | '.join(cells)} |"


def of_memory(over: int, under: int, goal: float) -> str:
    return judged(f"{over / under:.3f}", over / under, goal)


def of_time(over: list[float], under: list[float], goal: float = math.inf) -> str:
    """Median (range) of the ratio of each round, for a goal of the median; "-" where there are none."""
    if not over or not under:
        return "-"
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    middle = statistics.median(ratios)
    return judged(f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})", middle, goal)


def judged(text: str, value: float, goal: float) -> str:
    """`text`, which says so if its value misses the goal."""
    return text if value <= goal else f"**{text}, missed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="N")
    parser.add_argument("--vocab", type=int, default=32768, help="V")
    parser.add_argument("--student-hidden", type=int, default=1024)
    parser.add_argument("--teacher-hidden", type=int, default=4096)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all ranks together")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda at --tp 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.slow_bfloat16 = args.device == "cpu" and slow_bfloat16()  # once, since all ranks must do the same
    print(HEADER, flush=True)
    for world in args.tp:
        for dtype in (getattr(torch, name) for name in args.dtypes):
            peaks = counted_peaks(args, dtype, world)
            seconds = seconds_on_ranks(args, dtype, world) if args.repeats else Seconds([], [], [], [], [])
            print(row(args, dtype, world, peaks, seconds), flush=True)


if __name__ == "__main__":
    main()
