"""A GPT model as values. Building it needs megatron-core, describing it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_kd.config.model_parts import Architecture, FakeQuantization, ParallelLayout, Recompute, WeightOrigin

if TYPE_CHECKING:
    from megatron_kd.models.gpt import DistillableGPTModel
    from megatron_kd.runtime.layout import Layout

# Formats of `quantization` that leave the inputs of linear layers as they are.
WEIGHT_ONLY = ("int8_weight_only", "int4_weight_only")


# Parts are listed from last to first: a dataclass takes the fields of its last base first.
@dataclass(kw_only=True)
class GPTModelProvider(WeightOrigin, FakeQuantization, Recompute, ParallelLayout, Architecture):
    """A GPT model: its architecture, parallel layout and origin of weights, flat."""

    def provide(
        self,
        layout: Layout,
        *,
        padded_vocab_size: int,
        vocab_size: int | None = None,
        dtype: str = "float32",
        seed: int | None = None,
        chunk: int = 0,
    ) -> DistillableGPTModel:
        """Build this model's part on this rank.

        Args:
            layout: the process groups and this rank's place in them.
            padded_vocab_size: width of embedding and head.
            vocab_size: the true number of tokens; None: this provider's `vocab_size`, else the padded one.
            dtype: of the parameters: "float32", "bfloat16" or "float16".
            seed: of the random weights, equal at every layout; None leaves them unset, to be loaded.
            chunk: which of this stage's parts, with a virtual pipeline.

        Returns:
            The megatron-core GPT model on this rank's device.
        """
        from megatron_kd.models.build_gpt import ModelShard, build_gpt

        shard = ModelShard(
            provider=self,
            layout=layout,
            padded_vocab_size=padded_vocab_size,
            vocab_size=vocab_size or self.vocab_size or padded_vocab_size,
            dtype=dtype,
            chunk=chunk,
        )
        return build_gpt(shard, seed=seed)


def explicit(model: GPTModelProvider) -> GPTModelProvider:
    """The same model with every size written out that otherwise follows from another one."""
    return replace(
        model,
        ffn_hidden_size=model.ffn_size,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
    )


def meaning(model: GPTModelProvider, field: str) -> Any:
    """A field's value, with None replaced by what it stands for."""
    if field == "rope_scaling_factor" and not model.rope_scaling:
        return None  # has no effect
    return getattr(explicit(model), field)
