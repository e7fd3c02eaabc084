"""Our layers as ModelOpt's pruner wants them: each registered with what of it shrinks.

ModelOpt exchanges a layer for a dynamic one while it prunes, and looks up by class which. Without TransformerEngine it
knows megatron-core's fused LayerNorm and the attention that keeps [S, S] scores. A model that is to be pruned is built
with `prunable_layers` and stays on its own classes, so that models of a run are not touched.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_kd.models.layers import LayerNorm, Norm, RMSNorm
from megatron_kd.models.spec import local_layer_spec
from megatron_kd.runtime.modelopt import DMRegistry, DynamicModule, TracedHp, nas_megatron


class PrunableSelfAttention(SelfAttention):
    """megatron-core's, as a class of its own to be registered by. Its core attention is `SDPAttention`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As inherited; defined here, since ModelOpt takes classes of one `forward` for one class."""
        return super().forward(*args, **kwargs)


class _DynamicRMSNorm(nas_megatron._DynamicFusedLayerNorm):
    """`RMSNorm` with a number of channels to choose: weight and size follow it."""

    def _setup(self, *, num_features: TracedHp) -> None:
        self._register_hparam("num_features", num_features)
        self._register_dynamic_attribute("weight", self._cut_to_active_features)
        self._register_dynamic_attribute("hidden_size", self._get_normalized_shape)


class _DynamicSDPSelfAttention(nas_megatron._DynamicSelfAttention):
    """Self-attention with a number of heads to choose.

    `SDPAttention` itself has nothing to shrink: it takes the heads from its input, and a head's width stays.
    """

    def _setup(self, *, hidden_size: TracedHp) -> None:
        heads = nas_megatron.NumAttentionHeadsHp(
            self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        )
        self._register_hparam("num_attention_heads", heads)
        self._register_dynamic_attribute(
            "num_attention_heads_per_partition", lambda module, _: module.num_attention_heads
        )
        nas_megatron._DynamicQKVColumnParallelLinear.convert(
            self.linear_qkv, num_attention_heads=heads, hidden_size=hidden_size
        )
        nas_megatron._DynamicProjRowParallelLinear.convert(
            self.linear_proj, num_attention_heads=heads, hidden_size=hidden_size
        )

    def export(self) -> nn.Module:
        """The attention with the heads that were chosen, as a plain module."""
        self.linear_qkv.export()
        self.linear_proj.export()
        return DynamicModule.export(self)


@cache
def register_layers() -> None:
    """Tell ModelOpt about our layers, once in a process."""
    for layer, dynamic in (
        (RMSNorm, _DynamicRMSNorm),
        (LayerNorm, nas_megatron._DynamicFusedLayerNorm),
        (PrunableSelfAttention, _DynamicSDPSelfAttention),
    ):
        DMRegistry.register({layer: f"{layer.__module__}.{layer.__name__}"})(dynamic)


def prunable_layers(config: TransformerConfig, num_layers_here: int) -> TransformerBlockSubmodules:
    """The transformer block of a model to be pruned: the local layers everywhere, TransformerEngine or not."""
    layer: ModuleSpec = local_layer_spec(config, PrunableSelfAttention)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers_here, layer_norm=Norm)
