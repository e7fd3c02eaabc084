"""Presets: published parameter counts, and the same models in `transformers`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.models import llama, qwen

PUBLISHED: dict[Callable[..., GPTModelProvider], int] = {
    llama.llama32_1b: 1_235_814_400,
    llama.llama32_3b: 3_212_749_824,
    llama.llama31_8b: 8_030_261_248,
    llama.llama31_70b: 70_553_706_496,
    qwen.qwen25_500m: 494_032_768,
    qwen.qwen25_1p5b: 1_543_714_304,
    qwen.qwen25_3b: 3_085_938_688,
    qwen.qwen25_7b: 7_615_616_512,
    qwen.qwen25_14b: 14_770_033_664,
    qwen.qwen25_32b: 32_763_876_352,
    qwen.qwen25_72b: 72_706_203_648,
    qwen.qwen3_600m: 596_049_920,
    qwen.qwen3_1p7b: 1_720_574_976,
    qwen.qwen3_4b: 4_022_468_096,
    qwen.qwen3_8b: 8_190_735_360,
    qwen.qwen3_14b: 14_768_307_200,
    qwen.qwen3_32b: 32_762_123_264,
}
presets = pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.__name__)


def parameter_count(model: GPTModelProvider) -> int:
    """Parameters of a model with RMSNorm, a gated MLP and no biases but those of QKV; vocabulary unpadded."""
    assert model.vocab_size and model.ffn_hidden_size
    head = model.kv_channels or model.hidden_size // model.num_attention_heads
    queries, keys = model.num_attention_heads * head, (model.num_query_groups or model.num_attention_heads) * head
    attention = model.hidden_size * (2 * queries + 2 * keys)
    attention += (queries + 2 * keys) * model.add_qkv_bias + 2 * head * model.qk_layernorm
    layer = attention + 3 * model.hidden_size * model.ffn_hidden_size + 2 * model.hidden_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.share_embeddings_and_output_weights else 2)
    return model.num_layers * layer + model.hidden_size + embeddings


def huggingface_config(name: str, model: GPTModelProvider) -> Any:
    """The configuration that `transformers` has for such a model."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    values: dict[str, Any] = {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_theta": model.rotary_base,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "max_position_embeddings": 131072,
    }
    if name.startswith("qwen25"):
        return Qwen2Config(**values)
    if name.startswith("qwen3"):
        return Qwen3Config(**values, head_dim=model.kv_channels)
    scaling = {
        "rope_type": "llama3",
        "factor": model.rope_scaling_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return LlamaConfig(**values, head_dim=model.kv_channels, rope_scaling=scaling)


@presets
def test_a_preset_has_the_published_number_of_parameters(preset: Callable[..., GPTModelProvider]) -> None:
    assert parameter_count(preset()) == PUBLISHED[preset]
    assert f"{PUBLISHED[preset]:,}" in (preset.__doc__ or "")


@presets
def test_transformers_counts_the_same(preset: Callable[..., GPTModelProvider]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(huggingface_config(preset.__name__, preset()))
    assert model.num_parameters() == PUBLISHED[preset]


@presets
def test_overrides_win(preset: Callable[..., GPTModelProvider]) -> None:
    model = preset(num_layers=3, kv_channels=32, init="random")
    assert (model.num_layers, model.kv_channels, model.init) == (3, 32, "random")
    assert preset().num_layers > 3


def test_values_no_count_depends_on() -> None:
    bases = {preset.__name__: (preset().rotary_base, preset().layernorm_epsilon) for preset in PUBLISHED}
    assert {values for name, values in bases.items() if name.startswith("llama")} == {(500000.0, 1e-5)}
    assert {values[0] for name, values in bases.items() if name.startswith("qwen")} == {1000000.0}
    assert {name for name, (_, epsilon) in bases.items() if name.startswith("qwen") and epsilon == 1e-5} == {
        "qwen25_14b",
        "qwen25_32b",
        "qwen25_72b",
    }
    scaled = {preset.__name__: preset().rope_scaling_factor for preset in PUBLISHED if preset().rope_scaling}
    assert scaled == {"llama32_1b": 32.0, "llama32_3b": 32.0, "llama31_8b": 8.0, "llama31_70b": 8.0}


def test_presets_need_no_torch() -> None:
    code = "import sys, megatron_kd.models.llama, megatron_kd.models.qwen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
