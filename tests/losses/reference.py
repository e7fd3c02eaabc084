"""The reference of the losses: the definitions, in float64, over the whole vocabulary, by plain autograd.

Written from the papers, not from the code under test: probabilities are formed outright and no closed form is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_kd.losses.kinds import Divergence


def log_softmax64(logits: Tensor, temperature: float, vocab_size: int | None) -> Tensor:
    return torch.log_softmax(logits.double()[..., :vocab_size] / temperature, dim=-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def divergence(student: Tensor, teacher: Tensor, wanted: Divergence, vocab_size: int | None = None) -> Tensor:
    """[...] divergence of `student` from `teacher` logits [..., V] held whole."""
    log_q = log_softmax64(student, wanted.temperature, vocab_size)
    log_p = log_softmax64(teacher.detach(), wanted.temperature, vocab_size)
    value = untempered(log_q, log_p, wanted)
    return value * wanted.temperature**2 if wanted.temperature_squared else value


def untempered(log_q: Tensor, log_p: Tensor, wanted: Divergence) -> Tensor:
    q, p, kind, beta, alpha = log_q.exp(), log_p.exp(), wanted.kind, wanted.beta, wanted.alpha
    if kind == "forward_kl":
        return kl(log_p, log_q)
    if kind == "reverse_kl":
        return kl(log_q, log_p)
    if kind == "jsd":
        log_m = (beta * p + (1 - beta) * q).log()
        return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    if kind == "skewed_forward_kl":
        return kl(log_p, (alpha * p + (1 - alpha) * q).log())
    if kind == "skewed_reverse_kl":
        return kl(log_q, ((1 - alpha) * p + alpha * q).log())
    assert kind == "total_variation", kind
    return (p - q).abs().sum(-1) / 2


def value_and_gradient(
    student: Tensor, teacher: Tensor, weights: Tensor, wanted: Divergence, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Per-token values, and the gradient of sum(weights * values) with respect to the student's logits; float64."""
    leaf = student.detach().double().requires_grad_()
    value = divergence(leaf, teacher, wanted, vocab_size)
    (gradient,) = torch.autograd.grad((value * weights).sum(), leaf)
    return value.detach(), gradient


def shard(tensor: Tensor, rank: int, world: int) -> Tensor:
    """This rank's part of the last dimension."""
    return tensor.chunk(world, dim=-1)[rank].contiguous()
