"""Qwen2.5 and Qwen3 (dense) presets: the values of Alibaba's published configurations of the base models.

    teacher = qwen3_8b(seq_length=4096, tensor_model_parallel_size=2)

Overrides are fields of `GPTModelProvider`. `seq_length` is what training uses, not the longest context.
The instruction-tuned Qwen2.5 14B, 32B and 72B differ from their base models in `layernorm_epsilon=1e-6`.
"""

from __future__ import annotations

from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider

_QWEN: dict[str, Any] = {
    "vocab_size": 151936,
    "rotary_base": 1000000.0,
    "layernorm_epsilon": 1e-6,
    "seq_length": 4096,
}
_QWEN25: dict[str, Any] = {**_QWEN, "add_qkv_bias": True}
_QWEN25_TIED: dict[str, Any] = {**_QWEN25, "num_query_groups": 2, "share_embeddings_and_output_weights": True}
_QWEN25_LARGE: dict[str, Any] = {**_QWEN25, "num_query_groups": 8, "vocab_size": 152064, "layernorm_epsilon": 1e-5}
_QWEN3: dict[str, Any] = {**_QWEN, "qk_layernorm": True, "num_query_groups": 8, "kv_channels": 128}
_QWEN3_TIED: dict[str, Any] = {**_QWEN3, "share_embeddings_and_output_weights": True}


def qwen25_500m(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 0.5B: 494,032,768 parameters."""
    sizes = {"num_layers": 24, "hidden_size": 896, "ffn_hidden_size": 4864, "num_attention_heads": 14}
    return GPTModelProvider(**{**_QWEN25_TIED, **sizes, **overrides})


def qwen25_1p5b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 1.5B: 1,543,714,304 parameters."""
    sizes = {"num_layers": 28, "hidden_size": 1536, "ffn_hidden_size": 8960, "num_attention_heads": 12}
    return GPTModelProvider(**{**_QWEN25_TIED, **sizes, **overrides})


def qwen25_3b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 3B: 3,085,938,688 parameters."""
    sizes = {"num_layers": 36, "hidden_size": 2048, "ffn_hidden_size": 11008, "num_attention_heads": 16}
    return GPTModelProvider(**{**_QWEN25_TIED, **sizes, **overrides})


def qwen25_7b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 7B: 7,615,616,512 parameters."""
    sizes = {"num_layers": 28, "hidden_size": 3584, "ffn_hidden_size": 18944, "num_attention_heads": 28}
    return GPTModelProvider(**{**_QWEN25, **sizes, "num_query_groups": 4, "vocab_size": 152064, **overrides})


def qwen25_14b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 14B: 14,770,033,664 parameters."""
    sizes = {"num_layers": 48, "hidden_size": 5120, "ffn_hidden_size": 13824, "num_attention_heads": 40}
    return GPTModelProvider(**{**_QWEN25_LARGE, **sizes, **overrides})


def qwen25_32b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 32B: 32,763,876,352 parameters."""
    sizes = {"num_layers": 64, "hidden_size": 5120, "ffn_hidden_size": 27648, "num_attention_heads": 40}
    return GPTModelProvider(**{**_QWEN25_LARGE, **sizes, **overrides})


def qwen25_72b(**overrides: Any) -> GPTModelProvider:
    """Qwen2.5 72B: 72,706,203,648 parameters."""
    sizes = {"num_layers": 80, "hidden_size": 8192, "ffn_hidden_size": 29568, "num_attention_heads": 64}
    return GPTModelProvider(**{**_QWEN25_LARGE, **sizes, **overrides})


def qwen3_600m(**overrides: Any) -> GPTModelProvider:
    """Qwen3 0.6B: 596,049,920 parameters."""
    sizes = {"num_layers": 28, "hidden_size": 1024, "ffn_hidden_size": 3072, "num_attention_heads": 16}
    return GPTModelProvider(**{**_QWEN3_TIED, **sizes, **overrides})


def qwen3_1p7b(**overrides: Any) -> GPTModelProvider:
    """Qwen3 1.7B: 1,720,574,976 parameters."""
    sizes = {"num_layers": 28, "hidden_size": 2048, "ffn_hidden_size": 6144, "num_attention_heads": 16}
    return GPTModelProvider(**{**_QWEN3_TIED, **sizes, **overrides})


def qwen3_4b(**overrides: Any) -> GPTModelProvider:
    """Qwen3 4B: 4,022,468,096 parameters."""
    sizes = {"num_layers": 36, "hidden_size": 2560, "ffn_hidden_size": 9728, "num_attention_heads": 32}
    return GPTModelProvider(**{**_QWEN3_TIED, **sizes, **overrides})


def qwen3_8b(**overrides: Any) -> GPTModelProvider:
    """Qwen3 8B: 8,190,735,360 parameters."""
    sizes = {"num_layers": 36, "hidden_size": 4096, "ffn_hidden_size": 12288, "num_attention_heads": 32}
    return GPTModelProvider(**{**_QWEN3, **sizes, **overrides})


def qwen3_14b(**overrides: Any) -> GPTModelProvider:
    """Qwen3 14B: 14,768,307,200 parameters."""
    sizes = {"num_layers": 40, "hidden_size": 5120, "ffn_hidden_size": 17408, "num_attention_heads": 40}
    return GPTModelProvider(**{**_QWEN3, **sizes, **overrides})


def qwen3_32b(**overrides: Any) -> GPTModelProvider:
    """Qwen3 32B: 32,762,123,264 parameters."""
    sizes = {"num_layers": 64, "hidden_size": 5120, "ffn_hidden_size": 25600, "num_attention_heads": 64}
    return GPTModelProvider(**{**_QWEN3, **sizes, **overrides})
