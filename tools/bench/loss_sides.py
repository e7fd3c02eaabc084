"""The steps that `loss_memory_speed.py` compares: ModelOpt's logit loss and both forms of ours, on one rank."""

from __future__ import annotations

import argparse
import warnings
from types import SimpleNamespace

import torch
import torch.distributed as dist

from megatron_kd.losses.faults import Faults
from megatron_kd.losses.keywords import fused_linear_divergence, vocab_parallel_divergence


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
        loss = vocab_parallel_divergence(
            student, teacher, temperature=self.temperature, group=self.group, faults=Faults()
        )
        loss.sum().backward()

    def logits_and_modelopt(self) -> None:
        student, teacher = self.logits()
        self.of_modelopt(student, teacher)
        gradient = student.grad.view(self.shape)  # type: ignore[union-attr]
        hidden_gradient = torch.mm(gradient, self.weight.detach())
        if self.world > 1:
            dist.all_reduce(hidden_gradient, group=self.group)
        self._add_head_gradient(gradient)

    def _add_head_gradient(self, gradient: torch.Tensor) -> None:
        main_grad = self.weight.main_grad  # type: ignore[attr-defined]
        if gradient.dtype == main_grad.dtype:
            main_grad.addmm_(gradient.T, self.hidden.detach())
        else:
            main_grad.add_(torch.mm(gradient.T, self.hidden.detach()))

    def fused(self) -> None:
        self.fused_of(self.hidden, self.teacher_hidden)

    def fused_of(self, hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> None:
        hidden.grad = None
        fused_linear_divergence(
            hidden, self.weight, teacher_hidden, self.teacher_weight,
            temperature=self.temperature, group=self.group, weight_grad_buffer=self.buffer,
            faults=Faults(),
        ).total.backward()  # fmt: skip
        self.weight.grad = None

    def matmuls(self) -> None:
        """The four products that no loss of hidden states can do without."""
        student, _ = self.logits()
        torch.mm(student.detach().view(self.shape), self.weight.detach())
        self._add_head_gradient(student.detach().view(self.shape))
