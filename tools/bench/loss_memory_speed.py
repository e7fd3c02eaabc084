"""Memory and time of the distillation losses beside ModelOpt's LogitsKLLoss, as ratios within one run.

    python tools/bench/loss_memory_speed.py                             # CPU: V = 32768, TP1 and TP2, fp32 and bf16
    python tools/bench/loss_memory_speed.py --tokens 512 --vocab 131072
    python tools/bench/loss_memory_speed.py --device cuda --tp 1 --tokens 8192 --vocab 128256 --student-hidden 4096

Prints a markdown table with the goals in its head. Memory is the peak of tensors allocated beyond the inputs of the
step, by counting allocations; the head's gradient lies in buffers made before on all sides and is not counted. Time is
the median (range) over `--repeats` rounds, in which the sides take turns, of the ratio of one round's forward and
backward.

- materialised / ModelOpt: both get the same logits [N, V/tp].
- fused / (logits + ModelOpt): both get the same hidden states and heads, and make the student's hidden gradient and
  add to the head's gradient.
- fused extra MB, of N and of 2 N tokens: what is added is the hidden states' gradient, none of it logits.

On a CPU the fused form's time in bfloat16 stands alone: a plain bfloat16 product takes minutes on one without such
units, so the other side's memory is counted with its products left out, which allocate nothing but their results.
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

HEADER = """\
| TP | dtype | N | V | materialised / ModelOpt memory | time | fused / (logits + ModelOpt) memory | time \
| fused extra MB, N | 2 N | fused s | of which 4 matmuls |
|---|---|---|---|---|---|---|---|---|---|---|---|
| goal | | | | fp32 <= 0.200, bf16 <= 0.167 | fp32 <= 0.95, bf16 <= 0.60 | <= 0.050 | - | - | no logits | - | - |"""


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
        self.without_products = False

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b; of a step `without_products`, a tensor of its size."""
        return a.new_empty(len(a), b.shape[1]) if self.without_products else torch.mm(a, b)

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            student = self.product(self.hidden, self.weight.T).view(-1, 1, self.shape[1])
            teacher = self.product(self.teacher_hidden, self.teacher_weight.T).view(-1, 1, self.shape[1])
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
        hidden_gradient = self.product(gradient, self.weight.detach())
        if self.world > 1:
            dist.all_reduce(hidden_gradient, group=self.group)
        self._add_head_gradient(gradient)

    def _add_head_gradient(self, gradient: torch.Tensor) -> None:
        main_grad = self.weight.main_grad  # type: ignore[attr-defined]
        if gradient.dtype == main_grad.dtype:
            main_grad.addmm_(gradient.T, self.hidden.detach())
        else:
            main_grad.add_(self.product(gradient.T, self.hidden.detach()))

    def fused(self) -> None:
        self.fused_of(self.hidden, self.teacher_hidden)

    def fused_of(self, hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> None:
        hidden.grad = None
        fused_linear_divergence(
            hidden, self.weight, teacher_hidden, self.teacher_weight,
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


def fused_peak_of_twice_the_tokens(step: Step) -> int:
    hidden = step.hidden.detach().repeat(2, 1).requires_grad_()
    teacher_hidden = step.teacher_hidden.repeat(2, 1)
    return peak_bytes(lambda: step.fused_of(hidden, teacher_hidden))


def interleaved_seconds(sides: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Seconds of each side, `repeats` of them; the sides take turns, so that a change of the load hits all."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times.append(time.perf_counter() - start)
    return seconds


def spread(over: list[float], under: list[float]) -> str:
    """Median (range) of the ratio of each round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def measure(args: argparse.Namespace, dtype: torch.dtype, group: dist.ProcessGroup | None = None) -> str:
    """One line of the table."""
    step = Step(args, dtype, group)
    memory, seconds = _on_logits(step, args.repeats)
    line = f"| {step.world} | {str(dtype)[6:]} | {args.tokens} | {args.vocab} "
    line += f"| {memory[1] / memory[0]:.3f} | {spread(seconds[1], seconds[0])} "
    step.without_products = dtype == torch.bfloat16 and args.device == "cpu"
    memory = [peak_bytes(side) for side in (step.logits_and_modelopt, step.fused)]
    line += f"| {memory[1] / memory[0]:.3f} "
    end = f"| {memory[1] / 1e6:.0f} | {fused_peak_of_twice_the_tokens(step) / 1e6:.0f} "
    if step.without_products:
        (fused,) = interleaved_seconds([step.fused], 1)
        return line + f"| - {end}| {fused[0]:.2f} | - |"
    other, fused, matmuls = interleaved_seconds([step.logits_and_modelopt, step.fused, step.matmuls], args.repeats)
    return line + f"| {spread(fused, other)} {end}| {statistics.median(fused):.2f} | {spread(matmuls, fused)} |"


def _on_logits(step: Step, repeats: int) -> tuple[list[int], list[list[float]]]:
    """Peak bytes and seconds of ModelOpt's loss and of the materialised form, on the same logits."""
    student, teacher = step.random_logits()

    def given_logits(side: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[[], None]:
        def run() -> None:
            student.grad = None
            side(student, teacher)

        return run

    sides = [given_logits(step.of_modelopt), given_logits(step.materialised)]
    return [peak_bytes(side) for side in sides], interleaved_seconds(sides, repeats)


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
