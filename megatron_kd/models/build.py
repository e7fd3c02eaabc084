"""From a provider's values to a megatron-core model on this rank."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.provider import GPTModelProvider
from megatron_kd.models.spec import block_spec, has_transformer_engine
from megatron_kd.models.weights import randomise
from megatron_kd.runtime.layout import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def transformer_config(provider: GPTModelProvider, layout: Layout, dtype: torch.dtype) -> TransformerConfig:
    """megatron-core's configuration of `provider` at parameters of `dtype`."""
    has_te = has_transformer_engine()
    return TransformerConfig(
        num_layers=provider.num_layers,
        hidden_size=provider.hidden_size,
        ffn_hidden_size=provider.ffn_hidden_size,
        num_attention_heads=provider.num_attention_heads,
        num_query_groups=provider.num_query_groups,
        kv_channels=provider.kv_channels,
        normalization=provider.normalization,
        layernorm_epsilon=provider.layernorm_epsilon,
        gated_linear_unit=provider.gated_linear_unit,
        activation_func=_ACTIVATIONS[provider.activation_func],
        add_bias_linear=provider.add_bias_linear,
        add_qkv_bias=provider.add_qkv_bias,
        qk_layernorm=provider.qk_layernorm,
        attention_dropout=provider.attention_dropout,
        hidden_dropout=provider.hidden_dropout,
        init_method_std=provider.init_method_std,
        tensor_model_parallel_size=layout.tp.size,
        pipeline_model_parallel_size=layout.pp.size,
        sequence_parallel=provider.sequence_parallel,
        recompute_granularity=provider.recompute_granularity,
        recompute_method=provider.recompute_method,
        recompute_num_layers=provider.recompute_num_layers,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        # A step's gradient is the mean over the unmasked tokens of the global batch, however it is split.
        calculate_per_token_loss=True,
        # Weights are drawn by `randomise` or loaded, both after building.
        perform_initialization=False,
        use_cpu_initialization=layout.device.type == "cpu",
        # Fused kernels that come with apex or TransformerEngine.
        gradient_accumulation_fusion=importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
        bias_dropout_fusion=has_te,
        bias_activation_fusion=has_te and provider.add_bias_linear,
        masked_softmax_fusion=False,
        persist_layer_norm=has_te,
        apply_rope_fusion=has_te,
    )


def build_gpt(
    provider: GPTModelProvider,
    layout: Layout,
    *,
    padded_vocab_size: int,
    vocab_size: int,
    dtype: str,
    seed: int | None,
) -> DistillableGPTModel:
    """See `GPTModelProvider.provide`."""
    config = transformer_config(provider, layout, DTYPES[dtype])
    layers_here = get_num_layers_to_build(config, pp_rank=layout.pp.rank)
    model = DistillableGPTModel(
        config,
        block_spec(config, layers_here),
        vocab_size=padded_vocab_size,
        max_sequence_length=provider.seq_length,
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=provider.share_embeddings_and_output_weights,
        position_embedding_type=provider.position_embedding_type,
        rotary_base=provider.rotary_base,
        rotary_percent=provider.rotary_percent,
        rope_scaling=provider.rope_scaling,
        rope_scaling_factor=provider.rope_scaling_factor,
        pg_collection=layout.groups,
    )
    model.true_vocab_size = vocab_size
    _mark_tensor_parallel(model)
    model.to(layout.device)
    if seed is not None:
        randomise(model, seed=seed, std=provider.init_method_std, num_layers=provider.num_layers)
    return model


def _mark_tensor_parallel(model: DistillableGPTModel) -> None:
    """Mark the sharded weights. megatron-core does so while it initialises them, which it is told not to do.

    Unmarked, a shard counts as a copy of tensor-parallel rank 0's, and drops out of the gradient norm.
    """
    for module in model.modules():
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)):
            weight = getattr(module, "weight", None)
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(weight, True, int(isinstance(module, RowParallelLinear)), 1)
