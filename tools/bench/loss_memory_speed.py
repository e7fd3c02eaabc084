"""Memory and time of the distillation losses beside ModelOpt's LogitsKLLoss, as ratios within one run.

    python tools/bench/loss_memory_speed.py                             # CPU: V = 32768, TP1 and TP2, fp32 and bf16
    python tools/bench/loss_memory_speed.py --tokens 512 --vocab 131072 --tp 1
    python tools/bench/loss_memory_speed.py --device cuda --tp 1 --tokens 8192 --vocab 128256 --student-hidden 4096

Prints a markdown table. Memory is the peak of tensors allocated beyond the inputs of the step, by counting
allocations; the head's gradient lies in buffers made before on all sides and is not counted. Time is the median of
`--repeats` interleaved runs of forward and backward.

- materialised / ModelOpt: both get the same logits [N, V/tp].
- fused / (logits + ModelOpt): both get the same hidden states and heads, and make the student's hidden gradient and
  add to the head's gradient.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_kd.losses.divergence import vocab_parallel_divergence
from megatron_kd.losses.fused_linear import fused_linear_divergence
from tools.bench.allocations import AllocationCounter

HEADER = (
    "| TP | dtype | N | V | materialised / ModelOpt memory | time | fused / (logits + ModelOpt) memory | time "
    "| fused extra MB | fused s | of which 4 matmuls |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


class Step:
    """Inputs of one rank, and the four sides to compare; each makes one forward and backward."""

    def __init__(self, args: argparse.Namespace, dtype: torch.dtype, group: dist.ProcessGroup | None):
        warnings.simplefilter("ignore")
        from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

        torch.manual_seed(0)
        self.group, self.temperature = group, args.temperature
        self.world = dist.get_world_size(group) if group is not None else 1
        self.shape = (args.tokens, args.vocab // self.world)
        self.modelopt = LogitsKLLoss(
            SimpleNamespace(tensor_model_parallel_size=self.world, sequence_parallel=False), args.temperature
        )
        device = torch.device(args.device)

        def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, device=device) * scale).to(dtype)

        self.hidden = randn(args.tokens, args.student_hidden).requires_grad_()
        self.weight = torch.nn.Parameter(randn(self.shape[1], args.student_hidden, scale=args.student_hidden**-0.5))
        self.teacher_hidden = randn(args.tokens, args.teacher_hidden)
        self.teacher_weight = randn(self.shape[1], args.teacher_hidden, scale=args.teacher_hidden**-0.5)
        self.weight.main_grad = torch.zeros(self.weight.shape, device=device)  # type: ignore[attr-defined]
        self.buffer = torch.empty_like(self.weight.main_grad)

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            student = torch.mm(self.hidden, self.weight.T).view(-1, 1, self.shape[1])
            teacher = torch.mm(self.teacher_hidden, self.teacher_weight.T).view(-1, 1, self.shape[1])
        return student.requires_grad_(), teacher

    def random_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        student, teacher = torch.randn(2, self.shape[0], 1, self.shape[1], device=self.hidden.device)
        return student.to(self.hidden.dtype).requires_grad_(), teacher.to(self.hidden.dtype)

    def of_modelopt(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        self.modelopt(student, teacher)[0].sum().backward()

    def materialised(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        loss = vocab_parallel_divergence(student, teacher, temperature=self.temperature, group=self.group)
        loss.sum().backward()

    def logits_and_modelopt(self) -> None:
        student, teacher = self.logits()
        self.of_modelopt(student, teacher)
        gradient = student.grad.view(self.shape)  # type: ignore[union-attr]
        hidden_gradient = gradient @ self.weight.detach()
        if self.world > 1:
            dist.all_reduce(hidden_gradient, group=self.group)
        self._add_head_gradient(gradient)

    def _add_head_gradient(self, gradient: torch.Tensor) -> None:
        main_grad = self.weight.main_grad  # type: ignore[attr-defined]
        if gradient.dtype == main_grad.dtype:
            main_grad.addmm_(gradient.T, self.hidden.detach())
        else:
            main_grad.add_(gradient.T @ self.hidden.detach())

    def fused(self) -> None:
        self.hidden.grad = None
        fused_linear_divergence(
            self.hidden, self.weight, self.teacher_hidden, self.teacher_weight,
            temperature=self.temperature, group=self.group, weight_grad_buffer=self.buffer,
        ).total.backward()  # fmt: skip
        self.weight.grad = None

    def matmuls(self) -> None:
        """The four products that no loss of hidden states can do without."""
        student, _ = self.logits()
        torch.mm(student.detach().view(self.shape), self.weight.detach())
        self._add_head_gradient(student.detach().view(self.shape))


def peak_bytes(side: Callable[[], Any]) -> int:
    with AllocationCounter() as counter:
        side()
    return counter.peak_bytes


def median_seconds(sides: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each side; the sides take turns, so that a change of the machine's load hits all."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def measure(args: argparse.Namespace, dtype: torch.dtype, group: dist.ProcessGroup | None = None) -> str:
    """One line of the table."""
    step = Step(args, dtype, group)
    memory, seconds = _on_logits(step, args.repeats)
    line = f"| {step.world} | {str(dtype)[6:]} | {args.tokens} | {args.vocab} "
    line += f"| {memory[1] / memory[0]:.3f} | {seconds[1] / seconds[0]:.2f} "
    if dtype == torch.bfloat16 and args.device == "cpu":
        # Plain bfloat16 products take minutes on a CPU without such units: no side to compare the fused form with.
        return line + f"| - | - | {peak_bytes(step.fused) / 1e6:.0f} | {median_seconds([step.fused], 1)[0]:.2f} | - |"
    sides = [step.logits_and_modelopt, step.fused, step.matmuls]
    memory, seconds = [peak_bytes(side) for side in sides], median_seconds(sides, args.repeats)
    line += f"| {memory[1] / memory[0]:.3f} | {seconds[1] / seconds[0]:.2f} "
    return line + f"| {memory[1] / 1e6:.0f} | {seconds[1]:.2f} | {seconds[2] / seconds[1]:.2f} |"


def _on_logits(step: Step, repeats: int) -> tuple[list[int], list[float]]:
    """Peak bytes and seconds of ModelOpt's loss and of the materialised form, on the same logits."""
    student, teacher = step.random_logits()

    def given_logits(side: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            student.grad = None
            side(student, teacher)

        return run

    sides = [given_logits(step.of_modelopt), given_logits(step.materialised)]
    return [peak_bytes(side) for side in sides], median_seconds(sides, repeats)


def on_rank(rank: int, world: int, folder: str, args: argparse.Namespace) -> None:
    from megatron.core import parallel_state

    torch.set_num_threads(max(1, args.threads // world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(world)  # where ModelOpt looks for its group
    for dtype in args.dtypes:
        line = measure(args, getattr(torch, dtype), parallel_state.get_tensor_model_parallel_group())
        if rank == 0:
            print(line, flush=True)
    dist.destroy_process_group()


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
    parser.add_argument("--device", default="cpu", help="cpu, or cuda at --tp 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(HEADER, flush=True)
    for world in args.tp:
        if world > 1:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(on_rank, (world, folder, args), nprocs=world)
            continue
        for dtype in args.dtypes:
            print(measure(args, getattr(torch, dtype)), flush=True)


if __name__ == "__main__":
    main()
