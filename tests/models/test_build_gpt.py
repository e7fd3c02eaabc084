"""From a provider's values to a model: which parts it has, and what it computes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_kd.config.gpt_model import GPTModelProvider
from tests.ranks import run_ranks

MODEL = GPTModelProvider(
    num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, seq_length=16, vocab_size=250,
    init_method_std=0.3,
)  # fmt: skip


def built(provider: GPTModelProvider, tp: int = 1, pp: int = 1, dtype: str = "float32") -> dict[str, Any]:
    """On a rank: shapes and marks of the parameters, and [B, S, V] logits of a few tokens where they are made."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=1) as layout:
        model = provider.provide(layout, padded_vocab_size=256, dtype=dtype, seed=7).eval()
        tokens = torch.arange(16)[None]
        logits = None
        if pp == 1:
            with torch.no_grad():
                logits = model(tokens, tokens, None).clone()
        return {
            "shapes": {name: tuple(p.shape) for name, p in model.named_parameters()},
            "dtypes": {p.dtype for p in model.parameters()},
            "sharded": {n for n, p in model.named_parameters() if getattr(p, "tensor_model_parallel", False)},
            "true_vocab_size": model.true_vocab_size,
            "logits": logits,
        }


@pytest.mark.parametrize(
    ("values", "has", "has_not"),
    [
        ({}, ["output_layer.weight"], ["linear_qkv.bias", "linear_fc1.bias", "q_layernorm", "position_embeddings"]),
        ({"share_embeddings_and_output_weights": True}, [], ["output_layer.weight"]),
        ({"add_qkv_bias": True}, ["linear_qkv.bias"], ["linear_proj.bias", "linear_fc1.bias"]),
        ({"add_bias_linear": True}, ["linear_qkv.bias", "linear_proj.bias", "linear_fc1.bias", "linear_fc2.bias"], []),
        ({"qk_layernorm": True}, ["q_layernorm.weight", "k_layernorm.weight"], ["k_layernorm.bias"]),
        ({"normalization": "LayerNorm"}, ["input_layernorm.bias", "final_layernorm.bias"], []),
        ({"position_embedding_type": "learned_absolute"}, ["embedding.position_embeddings.weight"], []),
    ],
    ids=lambda value: next(iter(value), "defaults") if isinstance(value, dict) else "",
)
def test_a_model_has_the_parts_its_values_name(values: dict[str, Any], has: list[str], has_not: list[str]) -> None:
    (model,) = run_ranks(1, built, replace(MODEL, **values))
    names = " ".join(model["shapes"])
    assert all(part in names for part in has)
    assert not any(part in names for part in has_not)
    assert model["logits"].isfinite().all()
    assert model["true_vocab_size"] == 250


@pytest.mark.parametrize("gated", [True, False])
def test_sizes(gated: bool) -> None:
    values = {"gated_linear_unit": gated, "num_query_groups": 2, "kv_channels": 16, "activation_func": "gelu_tanh"}
    (model,) = run_ranks(1, built, replace(MODEL, **values))
    shapes = model["shapes"]
    assert shapes["embedding.word_embeddings.weight"] == shapes["output_layer.weight"] == (256, 32)
    assert shapes["decoder.layers.1.self_attention.linear_qkv.weight"] == ((4 + 2 * 2) * 16, 32)
    assert shapes["decoder.layers.1.self_attention.linear_proj.weight"] == (32, 4 * 16)
    assert shapes["decoder.layers.1.mlp.linear_fc1.weight"] == (96 if gated else 48, 32)
    assert "decoder.layers.2.mlp.linear_fc1.weight" not in shapes


def test_tensor_parallel_ranks_hold_shards_of_one_model() -> None:
    (undivided,) = run_ranks(1, built, MODEL)
    ranks = run_ranks(2, built, MODEL, 2)
    logits = torch.cat([rank["logits"] for rank in ranks], dim=-1)
    torch.testing.assert_close(logits, undivided["logits"], atol=1e-5, rtol=1e-5)
    for rank in ranks:
        assert rank["shapes"]["embedding.word_embeddings.weight"] == (128, 32)
        matrices = {name for name, shape in rank["shapes"].items() if len(shape) == 2}
        assert rank["sharded"] == matrices


def test_pipeline_stages_hold_their_layers() -> None:
    first, last = run_ranks(2, built, MODEL, 1, 2)
    assert "embedding.word_embeddings.weight" in first["shapes"]
    assert "embedding.word_embeddings.weight" not in last["shapes"]
    assert {"output_layer.weight", "decoder.final_layernorm.weight"} <= last["shapes"].keys()
    for stage in (first, last):
        assert {name.split(".")[2] for name in stage["shapes"] if name.startswith("decoder.layers.")} == {"0"}


def test_parameters_are_of_the_given_precision() -> None:
    (model,) = run_ranks(1, built, MODEL, dtype="bfloat16")
    assert model["dtypes"] == {torch.bfloat16}
    assert model["logits"].dtype == torch.bfloat16


# Fields that megatron-core names alike, each with a value that is not its default.
UNUSUAL: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "num_attention_heads": 6,
    "num_query_groups": 3,
    "kv_channels": 24,
    "normalization": "LayerNorm",
    "layernorm_epsilon": 1e-3,
    "gated_linear_unit": False,
    "add_bias_linear": True,
    "add_qkv_bias": True,
    "qk_layernorm": True,
    "attention_dropout": 0.25,
    "hidden_dropout": 0.125,
    "init_method_std": 0.5,
    "recompute_granularity": "full",
    "recompute_method": "block",
    "recompute_num_layers": 2,
}


def core_values(provider: GPTModelProvider) -> dict[str, Any]:
    """On a rank: fields of megatron-core's configuration of a model that was built."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        config = provider.provide(layout, padded_vocab_size=256).config
        return {name: getattr(config, name) for name in (*UNUSUAL, "activation_func")}


def test_values_reach_megatron_core() -> None:
    from megatron_kd.models.build_gpt import _NAMED_ALIKE

    (found,) = run_ranks(1, core_values, GPTModelProvider(**UNUSUAL, activation_func="relu"))
    assert found == UNUSUAL | {"activation_func": torch.nn.functional.relu}
    # A name that a new megatron-core shares with a provider may mean another thing there.
    assert set(_NAMED_ALIKE) == {*UNUSUAL, "activation_func"}


def losses() -> tuple[float, float]:
    """On a rank: the model's mean loss on random labels, and float64 cross entropy over the true vocabulary."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = MODEL.provide(layout, padded_vocab_size=256, seed=7).eval()
        tokens, labels = torch.randint(250, (2, 2, 16))
        positions = torch.arange(16).expand_as(tokens)
        with torch.no_grad():
            loss = model(tokens, positions, None, labels=labels)
            logits = model(tokens, positions, None)[..., :250].double()
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss.double().mean().item(), expected.item()


def test_the_loss_leaves_the_padded_vocabulary_out() -> None:
    ((loss, expected),) = run_ranks(1, losses)
    assert loss == pytest.approx(expected, rel=1e-6)
