"""A GPT with RMSNorm, rotary embeddings, grouped queries and a gated MLP, written out in float64, and its importances.

Legend: B sequences, S positions, H hidden, N heads, G query groups, D channels of a head, F inside the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_kd.config.gpt_model import GPTModelProvider

Parameters = dict[str, Tensor]


@dataclass
class Measured:
    """Sums over batches of what ModelOpt measures; square roots are taken by `importances`."""

    norms: dict[str, Tensor] = field(default_factory=dict)  # by norm, [H]
    heads: dict[int, Tensor] = field(default_factory=dict)  # by layer, [N D]
    inner: dict[int, Tensor] = field(default_factory=dict)  # by layer, [F]
    layers: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Importances:
    """By channel [H]; by layer and channel [F]; by layer and head [G, N / G]; by layer."""

    hidden: Tensor
    inner: list[Tensor]
    heads: list[Tensor]
    layers: list[float]


def importances(model: GPTModelProvider, parameters: Parameters, batches: list[Tensor]) -> Importances:
    """The importances of `megatron_kd.students.minitron`'s table, over batches of token ids [B, S]."""
    measured = Measured()
    for tokens in batches:
        forward(model, parameters, tokens, measured)
    groups = model.num_query_groups or model.num_attention_heads
    layers = range(model.num_layers)
    return Importances(
        hidden=torch.stack([total.sqrt() for total in measured.norms.values()]).sum(0),
        inner=[measured.inner[layer].sqrt() for layer in layers],
        heads=[
            measured.heads[layer].sqrt().view(groups, model.num_attention_heads // groups, -1).square().sum(-1).sqrt()
            for layer in layers
        ],
        layers=[measured.layers[layer] for layer in layers],
    )


def forward(
    model: GPTModelProvider, parameters: Parameters, tokens: Tensor, measured: Measured | None = None
) -> Tensor:
    """Logits [B, S, V] in float64 of token ids [B, S]."""
    p = {name: value.double() for name, value in parameters.items()}
    measured = measured or Measured()
    hidden = p["embedding.word_embeddings.weight"][tokens]
    for layer in range(model.num_layers):
        before, at = hidden, f"decoder.layers.{layer}."
        normed = _norm(hidden, p[f"{at}input_layernorm.weight"], model)
        _add(measured.norms, f"{at}input", normed)
        hidden = hidden + _attention(model, p, at, normed, measured, layer)
        normed = _norm(hidden, p[f"{at}pre_mlp_layernorm.weight"], model)
        _add(measured.norms, f"{at}mlp", normed)
        gate, up = (normed @ p[f"{at}mlp.linear_fc1.weight"].T).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        _add(measured.inner, layer, inner)
        hidden = hidden + inner @ p[f"{at}mlp.linear_fc2.weight"].T
        cosine = torch.nn.functional.cosine_similarity(before, hidden, dim=-1).mean().item()
        measured.layers[layer] = measured.layers.get(layer, 0.0) + 1 - cosine
    return _norm(hidden, p["decoder.final_layernorm.weight"], model) @ p["output_layer.weight"].T


def _attention(model: GPTModelProvider, p: Parameters, at: str, x: Tensor, measured: Measured, layer: int) -> Tensor:
    groups = model.num_query_groups or model.num_attention_heads
    each, D = model.num_attention_heads // groups, model.kv_channels or model.hidden_size // model.num_attention_heads
    B, S, _ = x.shape
    qkv = (x @ p[f"{at}self_attention.linear_qkv.weight"].T).view(B, S, groups, each + 2, D)
    query, key, value = _rotated(qkv[..., :each, :]), _rotated(qkv[..., each, None, :]), qkv[..., each + 1, :]
    scores = torch.einsum("bsgnd,btgd->bgnst", query, key[..., 0, :]) / D**0.5
    scores = scores.masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
    attended = torch.einsum("bgnst,btgd->bsgnd", scores.softmax(-1), value).reshape(B, S, -1)
    _add(measured.heads, layer, attended)
    return attended @ p[f"{at}self_attention.linear_proj.weight"].T


def _rotated(x: Tensor) -> Tensor:
    """Rotary embeddings of base 10000 on [B, S, G, n, D], halves of D being real and imaginary parts."""
    S, D = x.shape[1], x.shape[-1]
    frequencies = 10000.0 ** -(torch.arange(0, D, 2).double() / D)
    angles = (torch.arange(S).double()[:, None] * frequencies)[:, None, None, :]
    real, imaginary = x.chunk(2, -1)
    return torch.cat(
        [real * angles.cos() - imaginary * angles.sin(), imaginary * angles.cos() + real * angles.sin()], -1
    )


def _norm(x: Tensor, weight: Tensor, model: GPTModelProvider) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + model.layernorm_epsilon).sqrt() * weight


def _add(sums: dict, key: object, x: Tensor) -> None:
    """Sum over sequences of the squares of means of |x| over positions."""
    total = x.abs().mean(1).square().sum(0)
    sums[key] = sums[key] + total if key in sums else total
