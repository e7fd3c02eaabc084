"""Norms and attention against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_kd.models.layers import LayerNorm, Norm, RMSNorm, SDPAttention
from megatron_kd.runtime import cpu_backend
from tests.ranks import run_ranks

S, B, HEADS, D = 12, 2, 4, 8


@pytest.fixture(autouse=True)
def backend() -> None:
    cpu_backend.install()


def config(**values: object) -> TransformerConfig:
    sizes = {"num_layers": 1, "hidden_size": HEADS * D, "num_attention_heads": HEADS}
    return TransformerConfig(**{**sizes, "use_cpu_initialization": True, "attention_dropout": 0.0, **values})


def naive_attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """[S, B, N * D] in float64; `hidden` [B, 1, S, S] is true where a query must not look."""
    repeats = query.shape[2] // key.shape[2]
    query, key, value = (x.double().permute(1, 2, 0, 3) for x in (query, key, value))
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(-1, -2)) * scale
    out = scores.masked_fill(hidden, -math.inf).softmax(-1) @ value
    return out.permute(2, 0, 1, 3).flatten(2)


def future() -> Tensor:
    """[1, 1, S, S], true above the diagonal."""
    return torch.ones(S, S, dtype=torch.bool).triu(1)[None, None]


def padding(lengths: list[int]) -> Tensor:
    """[B, 1, 1, S], true at and after each row's length."""
    return (torch.arange(S) >= torch.tensor(lengths)[:, None])[:, None, None]


def inputs(groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(groups)
    return tuple(
        torch.randn(S, B, heads, D, generator=generator, requires_grad=True) for heads in (HEADS, groups, groups)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("mask", ["causal", "causal and padded", "padded", "none"])
def test_attention_and_its_gradients_equal_the_formula(groups: int, mask: str) -> None:
    causal, padded = mask.startswith("causal"), mask.endswith("padded")
    attention = SDPAttention(config(), 1, AttnMaskType.causal if causal else AttnMaskType.padding, "self")
    tensors = inputs(groups)
    hidden = torch.zeros(B, 1, S, S, dtype=torch.bool)
    hidden = hidden | future() if causal else hidden
    hidden = hidden | padding([S, 7]) if padded else hidden
    out = attention(*tensors, padding([S, 7]) if padded else None)
    expected = naive_attention(*tensors, hidden, 1 / math.sqrt(D))
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((out * weight).sum(), tensors)
    wanted = torch.autograd.grad((expected * weight).sum(), tensors)
    torch.testing.assert_close(gradients, wanted, atol=5e-6, rtol=1e-5)


def test_a_mask_type_given_in_the_call_wins() -> None:
    attention = SDPAttention(config(), 1, AttnMaskType.causal, "self")
    tensors = inputs(HEADS)
    out = attention(*tensors, None, AttnMaskType.no_mask)
    expected = naive_attention(*tensors, torch.zeros(B, 1, S, S, dtype=torch.bool), 1 / math.sqrt(D))
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=1e-5)


def test_the_scale_follows_the_head_size_or_is_given() -> None:
    assert SDPAttention(config(kv_channels=64), 1, AttnMaskType.causal, "self").scale == 1 / 8
    assert SDPAttention(config(), 1, AttnMaskType.causal, "self", softmax_scale=0.3).scale == 0.3


def dropped_fraction() -> tuple[float, bool, bool]:
    """On a rank: the fraction of probabilities dropped, whether evaluation drops none, and whether ranks differ."""
    from megatron_kd.runtime.start import running_ranks

    world = torch.distributed.get_world_size()
    with running_ranks(tensor_model_parallel_size=world, pipeline_model_parallel_size=1, seed=3):
        attention = SDPAttention(config(attention_dropout=0.25), 1, AttnMaskType.no_mask, "self")
        length = 64
        zeros = torch.zeros(length, 1, 1, length)
        one_hot = torch.eye(length).view(length, 1, 1, length)  # the output shows the probabilities themselves
        out = attention(zeros, zeros, one_hot)
        kept = out[out > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / length / 0.75))
        every = [torch.empty_like(out) for _ in range(world)]
        torch.distributed.all_gather(every, out.contiguous())
        attention.eval()
        unchanged = bool((attention(zeros, zeros, one_hot) > 0).all())
        return (out == 0).double().mean().item(), unchanged, not torch.equal(every[0], every[-1])


def test_dropout_drops_in_training_only_and_differs_between_shards_of_heads() -> None:
    for fraction, unchanged, ranks_differ in run_ranks(2, dropped_fraction):
        assert fraction == pytest.approx(0.25, abs=0.03)
        assert unchanged
        assert ranks_differ


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm"])
def test_norms_equal_their_formulas(name: str) -> None:
    norm = Norm(config(normalization=name, sequence_parallel=False), 16, eps=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(16, generator=generator))
    hidden = torch.randn(5, 2, 16, generator=generator) + 1
    x, weight = hidden.double(), norm.weight.double()
    if name == "RMSNorm":
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    else:
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight + norm.bias.double()
    torch.testing.assert_close(norm(hidden).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "cls", "parameters"), [("RMSNorm", RMSNorm, 1), ("LayerNorm", LayerNorm, 2)])
def test_norm_weights_start_as_identity_and_are_marked_for_sequence_parallelism(
    name: str, cls: type, parameters: int
) -> None:
    split = config(
        normalization=name, sequence_parallel=True, tensor_model_parallel_size=2, params_dtype=torch.bfloat16
    )
    norm = Norm(split, 16)
    assert type(norm) is cls
    assert norm.weight.dtype == torch.bfloat16
    assert torch.equal(norm.weight, torch.ones(16, dtype=torch.bfloat16))
    assert [p.sequence_parallel for p in norm.parameters()] == [True] * parameters
    assert not any(p.sequence_parallel for p in Norm(config(normalization=name), 16).parameters())
