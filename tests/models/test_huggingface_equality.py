"""Our model against `transformers`': the same weights give the same logits.

This settles the conventions no formula of ours states: rotary embeddings and their scaling, norms and their
epsilon, grouped queries, biases, the gated MLP, tied embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.models.llama import llama31_8b, llama32_1b
from megatron_kd.models.qwen import qwen3_600m, qwen25_500m
from tests.models.test_presets import huggingface_config
from tests.ranks import run_ranks

SHRUNKEN = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2,
            "kv_channels": 32, "vocab_size": 250}  # fmt: skip
SEQUENCE = 256  # long enough for the scaled rotary frequencies to matter


@pytest.mark.parametrize("preset", [llama32_1b, llama31_8b, qwen25_500m, qwen3_600m], ids=lambda p: p.__name__)
def test_logits_equal_those_of_transformers(preset: Callable[..., GPTModelProvider]) -> None:
    # Qwen2 of `transformers` has no head size of its own.
    model = preset(**{**SHRUNKEN, "kv_channels": None} if preset is qwen25_500m else SHRUNKEN)
    (ours, theirs), *_ = run_ranks(1, both_logits, preset.__name__, model, model)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "difference",
    [
        {"rope_scaling_factor": 8.0},
        {"rotary_base": 10000.0},
        {"layernorm_epsilon": 1e-3},
        {"activation_func": "gelu"},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_the_comparison_sees_a_value_that_differs(difference: dict[str, Any]) -> None:
    right = llama32_1b(**SHRUNKEN)
    (ours, theirs), *_ = run_ranks(1, both_logits, "llama32_1b", right, replace(right, **difference))
    assert (ours - theirs).abs().max() > 1e-3


def both_logits(name: str, theirs: GPTModelProvider, ours: GPTModelProvider) -> tuple[Tensor, Tensor]:
    """On a rank: [B, S, V] logits of our model and of transformers', with the same random weights."""
    from transformers import AutoModelForCausalLM

    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        reference = AutoModelForCausalLM.from_config(huggingface_config(name, theirs)).eval()
        model = ours.provide(layout, padded_vocab_size=256).eval()
        draw_weights(reference)
        copy_weights(reference, model, ours)
        tokens = torch.randint(250, (2, SEQUENCE))
        positions = torch.arange(SEQUENCE).expand_as(tokens)
        with torch.no_grad():
            return model(tokens, positions, None)[..., :250].clone(), reference(tokens).logits


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Weights large enough for every part to show in the logits; norms around 1, biases not 0."""
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)


def copy_weights(reference: nn.Module, model: nn.Module, provider: GPTModelProvider) -> None:
    """Copy tensor by tensor; every tensor of `model` must be written."""
    source = reference.state_dict()
    target = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    written = {}
    embedding = source["model.embed_tokens.weight"]
    written["embedding.word_embeddings.weight"] = padded(embedding)
    if not provider.share_embeddings_and_output_weights:
        written["output_layer.weight"] = padded(source["lm_head.weight"])
    written["decoder.final_layernorm.weight"] = source["model.norm.weight"]
    for layer in range(provider.num_layers):
        theirs = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in source.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        written.update({f"decoder.layers.{layer}.{name}": v for name, v in layer_weights(theirs, provider).items()})
    assert written.keys() == target.keys()
    for name, value in written.items():
        assert target[name].shape == value.shape, name
        target[name].copy_(value)


def layer_weights(theirs: dict[str, Tensor], provider: GPTModelProvider) -> dict[str, Tensor]:
    """One layer's tensors by megatron-core's names."""
    ours = {
        "input_layernorm.weight": theirs["input_layernorm.weight"],
        "self_attention.linear_qkv.weight": by_query_group(theirs, "weight", provider),
        "self_attention.linear_proj.weight": theirs["self_attn.o_proj.weight"],
        "pre_mlp_layernorm.weight": theirs["post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": torch.cat([theirs["mlp.gate_proj.weight"], theirs["mlp.up_proj.weight"]]),
        "mlp.linear_fc2.weight": theirs["mlp.down_proj.weight"],
    }
    if provider.add_qkv_bias:
        ours["self_attention.linear_qkv.bias"] = by_query_group(theirs, "bias", provider)
    if provider.qk_layernorm:
        ours["self_attention.q_layernorm.weight"] = theirs["self_attn.q_norm.weight"]
        ours["self_attention.k_layernorm.weight"] = theirs["self_attn.k_norm.weight"]
    return ours


def by_query_group(theirs: dict[str, Tensor], what: str, provider: GPTModelProvider) -> Tensor:
    """Queries, keys and values interleaved by group, as megatron-core keeps them: q q k v, q q k v."""
    groups = provider.num_query_groups
    assert groups
    parts = [theirs[f"self_attn.{part}_proj.{what}"] for part in "qkv"]
    grouped = torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1)
    return grouped.flatten(0, 1)


def padded(rows: Tensor) -> Tensor:
    """Rows up to the width of the padded vocabulary."""
    return torch.cat([rows, rows.new_zeros(256 - len(rows), rows.shape[1])])
