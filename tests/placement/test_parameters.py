"""Counts of parameters against the models that are built, exactly, and against published ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import body_shares, shard_parameters
from tests.models.test_presets import PUBLISHED, presets
from tests.ranks import run_ranks

MODEL = GPTModelProvider(
    num_layers=4, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, seq_length=16,
    vocab_size=250,
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"share_embeddings_and_output_weights": True},
    "biases, learned positions, plain feed-forward": {
        "add_bias_linear": True,
        "normalization": "LayerNorm",
        "position_embedding_type": "learned_absolute",
        "gated_linear_unit": False,
        "activation_func": "gelu",
        "ffn_hidden_size": None,
        "num_query_groups": None,
    },
    "qwen": {"add_qkv_bias": True, "qk_layernorm": True, "kv_channels": 16},
    "norms with biases": {"normalization": "LayerNorm", "qk_layernorm": True},
}


def built(tp: int, pp: int) -> dict[str, tuple[int, dict[str, int]]]:
    """On a rank, for each variant: this rank's stage and the numbers of parameters by part."""
    from megatron_kd.runtime.start import running_ranks

    found = {}
    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=1) as layout:
        for name, values in VARIANTS.items():
            model = replace(MODEL, **values).provide(layout, padded_vocab_size=256)
            counts = dict.fromkeys(("embedding", "layers", "final_norm", "head", "matrix_elements"), 0)
            for parameter_name, parameter in model.named_parameters():
                counts[_part(parameter_name)] += parameter.numel()
                if ".layers." in parameter_name and parameter.ndim == 2:
                    counts["matrix_elements"] += parameter.numel()
            found[name] = layout.pp.rank, counts
    return found


def _part(name: str) -> str:
    for start, part in (("embedding", "embedding"), ("decoder.layers", "layers"), ("output_layer", "head")):
        if name.startswith(start):
            return part
    return "final_norm"


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_counts_are_those_of_the_built_model(tp: int, pp: int) -> None:
    for rank in run_ranks(tp * pp, built, tp, pp):
        for name, (stage, counts) in rank.items():
            model = replace(MODEL, **VARIANTS[name])
            planned = shard_parameters(model, padded_vocab_size=256, tp=tp, pp=pp, stage=stage)
            assert {part: getattr(planned, part) for part in counts} == counts, (name, stage)


@presets
def test_counts_are_the_published_ones(preset: Callable[..., GPTModelProvider]) -> None:
    model = preset()
    assert model.vocab_size is not None
    assert shard_parameters(model, padded_vocab_size=model.vocab_size).total == PUBLISHED[preset]


def test_shares_of_the_body_add_up() -> None:
    wide = replace(MODEL, normalization="RMSNorm")
    assert sum(body_shares(wide, padded_vocab_size=256, tp=1, pp=4)) == pytest.approx(1)
    # Norms are on every shard: their weights are not divided.
    assert 1 < 2 * sum(body_shares(wide, padded_vocab_size=256, tp=2, pp=2)) < 1.1
