"""A provider as the values of a Hugging Face `config.json`: the inverse of `architecture`, also without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.huggingface.architecture import ACTIVATIONS
from megatron_kd.huggingface.rope import LLAMA3_SCALING


def why_not_exportable(model: GPTModelProvider) -> list[str]:
    """Why no family of `transformers` computes this model; empty if one does. Each names the field and its value."""
    return list(_reasons(model))


def _reasons(model: GPTModelProvider) -> Iterator[str]:
    for field, value in (
        ("normalization", "RMSNorm"),
        ("gated_linear_unit", True),
        ("position_embedding_type", "rope"),
        ("rotary_percent", 1.0),
    ):
        if getattr(model, field) != value:
            yield f"{field}={getattr(model, field)}: exported models have {value}"
    if model.qk_layernorm and (model.add_qkv_bias or model.add_bias_linear):
        yield "qk_layernorm=True with biases: no family that is exported has both"


def family_of(model: GPTModelProvider) -> str:
    """The `model_type` of an exported model, by its computation alone. A Mistral model becomes a llama."""
    if model.qk_layernorm:
        return "qwen3"
    return "qwen2" if model.add_qkv_bias and not model.add_bias_linear else "llama"


def config_values(model: GPTModelProvider) -> dict[str, Any]:
    """Keys of `config.json` for a model that is exportable and whose `vocab_size` is known."""
    values: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "hidden_act": _activation(model),
        "max_position_embeddings": model.positions,
        "initializer_range": model.init_method_std,
        "rms_norm_eps": model.layernorm_epsilon,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "rope_theta": model.rotary_base,
        "attention_dropout": model.attention_dropout,
    }
    if family_of(model) == "llama":
        values |= {"attention_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear}
    if model.rope_scaling:
        values["rope_scaling"] = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **LLAMA3_SCALING}
    return values


def _activation(model: GPTModelProvider) -> str:
    return next(name for name, ours in ACTIVATIONS.items() if ours == model.activation_func)
