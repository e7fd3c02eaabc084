"""Equality with ModelOpt 0.43 where both are right, and a record of where it is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_kd.losses.hidden import cosine_loss, mse_loss
from megatron_kd.losses.keywords import vocab_parallel_divergence
from tests.losses import reference
from tests.ranks import run_ranks

plugin = pytest.importorskip("modelopt.torch.distill.plugins.megatron")

S, B, V, H = 5, 2, 32, 12


def config(tp: int = 1) -> SimpleNamespace:
    return SimpleNamespace(tensor_model_parallel_size=tp, sequence_parallel=False)


def tensors(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(S, B, size, generator=generator) * 3 for _ in range(2))


def value_and_gradient(loss: torch.Tensor, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "reverse"), [("forward_kl", False), ("reverse_kl", True)])
def test_logits_kl(kind, reverse, temperature):
    student, teacher = tensors(V)
    student.requires_grad_()
    theirs = plugin.LogitsKLLoss(config(), temperature, reverse)(student, teacher)[0].transpose(0, 1)
    ours = vocab_parallel_divergence(student, teacher, kind=kind, temperature=temperature)
    for got, wanted in zip(value_and_gradient(ours, student), value_and_gradient(theirs, student), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_hidden_losses():
    student, teacher = tensors(H)
    student.requires_grad_()
    pairs = {cosine_loss: plugin.HiddenStateCosineLoss, mse_loss: plugin.MSELoss}
    for ours, their_class in pairs.items():
        theirs = their_class(config())(student, teacher)[0].transpose(0, 1)
        results = value_and_gradient(ours(student, teacher), student), value_and_gradient(theirs, student)
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def modelopt_on_two_ranks() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Values and this rank's gradients of ModelOpt's two logits losses and of ours."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(2)
    student, teacher = (reference.shard(t, dist.get_rank(), 2) for t in tensors(V))
    student.requires_grad_()
    results = {}
    for name, loss in (
        ("kl", plugin.LogitsKLLoss(config(2))),
        ("topk", plugin.TopKLogitsKLLoss(config(2), top_k=6)),
    ):
        value, gradient = value_and_gradient(loss(student, teacher)[0].transpose(0, 1), student)
        if name == "kl":  # theirs is this rank's part
            dist.all_reduce(value)
        results[name] = value, gradient
    ours = vocab_parallel_divergence(student, teacher, group=dist.group.WORLD)
    results["ours"] = value_and_gradient(ours, student)
    parallel_state.destroy_model_parallel()
    return results


def test_shards_and_modelopts_top_k_gradient_fault():
    """ModelOpt 0.43's TopKLogitsKLLoss has the right value and a gradient tp_size times too large."""
    ranks = run_ranks(2, modelopt_on_two_ranks)
    for result in ranks:
        for got, wanted in zip(result["ours"], result["kl"], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    student, teacher = tensors(V)
    student.requires_grad_()
    loss = plugin.TopKLogitsKLLoss(config(), top_k=6)(student, teacher)[0].transpose(0, 1)
    value, gradient = value_and_gradient(loss, student)
    torch.testing.assert_close(ranks[0]["topk"][0], value)
    on_shards = torch.cat([result["topk"][1] for result in ranks], dim=-1)
    torch.testing.assert_close(on_shards, 2 * gradient)  # if this fails ModelOpt mended it: tell the docs
