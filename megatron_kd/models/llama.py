"""Llama 3 presets: the values of Meta's published configurations.

    student = llama32_1b(seq_length=4096, checkpoint="runs/my-student/checkpoints/iter_0001000")

Overrides are fields of `GPTModelProvider`. `seq_length` is what training uses, not the longest context (131,072).
"""

from __future__ import annotations

from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider

_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_query_groups": 8,
    "kv_channels": 128,
    "rotary_base": 500000.0,
    "rope_scaling": True,
    "rope_scaling_factor": 8.0,
    "layernorm_epsilon": 1e-5,
    "seq_length": 8192,
}
_LLAMA32: dict[str, Any] = {
    **_LLAMA3,
    "rope_scaling_factor": 32.0,
    "share_embeddings_and_output_weights": True,
}


def llama32_1b(**overrides: Any) -> GPTModelProvider:
    """Llama 3.2 1B: 1,235,814,400 parameters."""
    sizes = {"num_layers": 16, "hidden_size": 2048, "ffn_hidden_size": 8192, "num_attention_heads": 32}
    return GPTModelProvider(**{**_LLAMA32, **sizes, "kv_channels": 64, **overrides})


def llama32_3b(**overrides: Any) -> GPTModelProvider:
    """Llama 3.2 3B: 3,212,749,824 parameters."""
    sizes = {"num_layers": 28, "hidden_size": 3072, "ffn_hidden_size": 8192, "num_attention_heads": 24}
    return GPTModelProvider(**{**_LLAMA32, **sizes, **overrides})


def llama31_8b(**overrides: Any) -> GPTModelProvider:
    """Llama 3.1 8B: 8,030,261,248 parameters."""
    sizes = {"num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32}
    return GPTModelProvider(**{**_LLAMA3, **sizes, **overrides})


def llama31_70b(**overrides: Any) -> GPTModelProvider:
    """Llama 3.1 70B: 70,553,706,496 parameters."""
    sizes = {"num_layers": 80, "hidden_size": 8192, "ffn_hidden_size": 28672, "num_attention_heads": 64}
    return GPTModelProvider(**{**_LLAMA3, **sizes, **overrides})
