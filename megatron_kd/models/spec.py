"""The modules of a transformer layer: TransformerEngine's where it is available, ours elsewhere."""

from __future__ import annotations

import importlib.util

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_kd.models.layers import Norm, SDPAttention, packable


def has_transformer_engine() -> bool:
    """Whether layers are TransformerEngine's: it is installed, and there is a CUDA device."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def block_spec(config: TransformerConfig, num_layers_here: int) -> ModuleSpec | TransformerBlockSubmodules:
    """The transformer block of this rank: `num_layers_here` of the model's layers, and the final norm."""
    if has_transformer_engine():
        layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
        parts = layer.submodules.self_attention.submodules
        # TransformerEngine's own support of packed rows changes the layout of all activations (to [tokens, 1, H]) and
        # takes one row per micro-batch.
        parts.core_attention = packable(parts.core_attention)
        return layer
    return TransformerBlockSubmodules(layer_specs=[local_layer_spec(config)] * num_layers_here, layer_norm=Norm)


def local_layer_spec(config: TransformerConfig, self_attention: type[SelfAttention] = SelfAttention) -> ModuleSpec:
    """A transformer layer made of megatron-core's parallel linears, our norms and SDPA."""
    qk_norm = Norm if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=self_attention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=SDPAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            # Checkpoint keys are those of TransformerEngine's fused layers, so that checkpoints of either spec load in
            # both.
            sharded_state_dict_keys_map={
                "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
                "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
            },
        ),
    )
