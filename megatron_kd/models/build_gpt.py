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
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.int8 import quantise_linears
from megatron_kd.models.spec import block_spec, has_transformer_engine
from megatron_kd.models.weights import randomise
from megatron_kd.runtime.layout import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# From megatron-core's configuration and the number of layers on this rank.
BlockSpec = Callable[[TransformerConfig, int], ModuleSpec | TransformerBlockSubmodules]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def transformer_config(
    provider: GPTModelProvider, layout: Layout, dtype: torch.dtype, *, on_host: bool = False
) -> TransformerConfig:
    """megatron-core's configuration of `provider` at parameters of `dtype`; `on_host`: made in host memory first."""
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
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
        # In an interleaved pipeline of two stages, the next stage is also the previous one: messages sent as a batch
        # would be taken for each other.
        overlap_p2p_comm=layout.chunks > 1,
        batch_p2p_comm=layout.chunks == 1,
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
        use_cpu_initialization=on_host or layout.device.type == "cpu",
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
    chunk: int = 0,
    layers: BlockSpec = block_spec,
) -> DistillableGPTModel:
    """See `GPTModelProvider.provide`; `layers` says which modules the layers are made of."""
    config = transformer_config(provider, layout, DTYPES[dtype])
    model = _construct(
        provider,
        config,
        layout,
        padded_vocab_size,
        tied=provider.share_embeddings_and_output_weights,
        chunk=chunk,
        layers=layers,
    )
    model.true_vocab_size = vocab_size
    _mark_tensor_parallel(model)
    model.to(layout.device)
    if seed is not None:
        randomise(model, seed=seed, std=provider.init_method_std, num_layers=provider.num_layers)
    return model


def build_body(
    provider: GPTModelProvider,
    layout: Layout,
    *,
    padded_vocab_size: int,
    vocab_size: int,
    dtype: str,
    int8: bool,
    allocate: Callable[[list[Tensor]], list[Tensor]],
) -> DistillableGPTModel:
    """A frozen model whose parameters are yet to be filled, and whose output layer has none: its weight is on "meta".

    Nothing is allocated but what `allocate` returns for the parameters, which it is given without storage. With
    `int8`, the weights of the linear layers are `Int8Linear`'s.
    """
    config = transformer_config(provider, layout, DTYPES[dtype], on_host=True)
    with torch.device("meta"):
        model = _construct(provider, config, layout, padded_vocab_size, tied=False, chunk=0)
    model.true_vocab_size = vocab_size
    if int8:
        quantise_linears(model, layout.tp.group)
    # megatron-core's sharded_state_dict wants an output layer to be there.
    named = [(name, value) for name, value in model.named_parameters() if not name.startswith("output_layer.")]
    tensors = allocate([parameter for _, parameter in named])
    for (name, _), tensor in zip(named, tensors, strict=True):
        module, _, last = name.rpartition(".")
        model.get_submodule(module)._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    return model.requires_grad_(False).eval()


def _construct(
    provider: GPTModelProvider,
    config: TransformerConfig,
    layout: Layout,
    padded_vocab_size: int,
    *,
    tied: bool,
    chunk: int,
    layers: BlockSpec = block_spec,
) -> DistillableGPTModel:
    vp_stage = chunk if layout.chunks > 1 else None
    layers_here = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=layout.pp.rank)
    return DistillableGPTModel(
        config,
        layers(config, layers_here),
        vocab_size=padded_vocab_size,
        max_sequence_length=provider.seq_length,
        pre_process=layout.is_first_stage and chunk == 0,
        post_process=layout.is_last_stage and chunk == layout.chunks - 1,
        parallel_output=True,
        share_embeddings_and_output_weights=tied,
        position_embedding_type=provider.position_embedding_type,
        rotary_base=provider.rotary_base,
        rotary_percent=provider.rotary_percent,
        rope_scaling=provider.rope_scaling,
        rope_scaling_factor=provider.rope_scaling_factor,
        pg_collection=layout.groups,
        vp_stage=vp_stage,
    )


def _mark_tensor_parallel(model: DistillableGPTModel) -> None:
    """Mark the sharded weights. megatron-core does so while it initialises them, which it is told not to do.

    Unmarked, a shard counts as a copy of tensor-parallel rank 0's, and drops out of the gradient norm.
    """
    for module in model.modules():
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)):
            weight = getattr(module, "weight", None)
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(weight, True, int(isinstance(module, RowParallelLinear)), 1)
