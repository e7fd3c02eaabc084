"""From a provider's values to a megatron-core model on this rank."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
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
from megatron_kd.config.model_parts import Architecture, Recompute, names
from megatron_kd.models.gpt import DistillableGPTModel
from megatron_kd.models.int8 import quantise_linears
from megatron_kd.models.spec import block_spec, has_transformer_engine
from megatron_kd.models.weights import randomise
from megatron_kd.runtime.layout import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Makes a block of megatron-core's configuration and the number of layers on this rank.
BlockSpec = Callable[[TransformerConfig, int], ModuleSpec | TransformerBlockSubmodules]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


# Fields of megatron-core's configuration that a provider has under the same name; their values are passed unchanged.
_NAMED_ALIKE = [name for name in (*names(Architecture), *names(Recompute)) if name in names(TransformerConfig)]
# The same of megatron-core's model.
_POSITIONS = ("position_embedding_type", "rotary_base", "rotary_percent", "rope_scaling", "rope_scaling_factor")


@dataclass(frozen=True, kw_only=True)
class ModelShard:
    """One rank's part of a model, yet to be built.

    Attributes:
        provider: the whole model.
        layout: the process groups and this rank's place in them.
        padded_vocab_size: width of embedding and head.
        vocab_size: the true number of tokens.
        dtype: of the parameters: "float32", "bfloat16" or "float16".
        chunk: which of this stage's parts, with a virtual pipeline.
    """

    provider: GPTModelProvider
    layout: Layout
    padded_vocab_size: int
    vocab_size: int
    dtype: str
    chunk: int = 0


def build_gpt(shard: ModelShard, *, seed: int | None, layers: BlockSpec = block_spec) -> DistillableGPTModel:
    """Build a shard on its rank's device.

    Args:
        shard: what is built.
        seed: of the random weights; None leaves them unset, to be loaded.
        layers: makes the layers; by default `block_spec`.
    """
    provider = shard.provider
    model = _construct(shard, tied=provider.share_embeddings_and_output_weights, layers=layers)
    _mark_tensor_parallel(model)
    model.to(shard.layout.device)
    if seed is not None:
        randomise(model, seed=seed, std=provider.init_method_std, num_layers=provider.num_layers)
    return model


def build_body(
    shard: ModelShard, *, int8: bool, allocate: Callable[[list[Tensor]], list[Tensor]]
) -> DistillableGPTModel:
    """A frozen model without an output head, whose parameters are yet to be filled.

    The caller decides where the parameters are stored, in shared host memory for instance: `allocate` is given all of
    them on "meta" and returns tensors for them, and nothing else is allocated. The output layer's weight stays on
    "meta". With `int8`, the weights of the linear layers are `Int8Linear`'s.
    """
    with torch.device("meta"):
        model = _construct(shard, tied=False, on_host=True)
    if int8:
        quantise_linears(model, shard.layout.tp.group)
    # The output layer stays, since megatron-core's sharded_state_dict needs one.
    named = [(name, value) for name, value in model.named_parameters() if not name.startswith("output_layer.")]
    tensors = allocate([parameter for _, parameter in named])
    for (name, _), tensor in zip(named, tensors, strict=True):
        module, _, last = name.rpartition(".")
        model.get_submodule(module)._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    return model.requires_grad_(False).eval()


def _construct(
    shard: ModelShard, *, tied: bool, on_host: bool = False, layers: BlockSpec = block_spec
) -> DistillableGPTModel:
    """Megatron-core's model with unset weights, created in host memory if `on_host`."""
    provider, layout, chunk = shard.provider, shard.layout, shard.chunk
    config = _transformer_config(shard, on_host=on_host)
    vp_stage = chunk if layout.chunks > 1 else None
    layers_here = get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=layout.pp.rank)
    model = DistillableGPTModel(
        config,
        layers(config, layers_here),
        vocab_size=shard.padded_vocab_size,
        max_sequence_length=provider.seq_length,
        pre_process=layout.is_first_stage and chunk == 0,
        post_process=layout.is_last_stage and chunk == layout.chunks - 1,
        parallel_output=True,
        share_embeddings_and_output_weights=tied,
        **{name: getattr(provider, name) for name in _POSITIONS},
        pg_collection=layout.groups,
        vp_stage=vp_stage,
    )
    model.true_vocab_size = shard.vocab_size
    return model


def _transformer_config(shard: ModelShard, *, on_host: bool) -> TransformerConfig:
    provider, layout, dtype = shard.provider, shard.layout, DTYPES[shard.dtype]
    values = {name: getattr(provider, name) for name in _NAMED_ALIKE}
    values["activation_func"] = _ACTIVATIONS[provider.activation_func]
    has_te = has_transformer_engine()
    return TransformerConfig(
        **values,
        tensor_model_parallel_size=layout.tp.size,
        pipeline_model_parallel_size=layout.pp.size,
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
        # In an interleaved pipeline of two stages, the next stage is also the previous one, and messages sent as one
        # batch could be mistaken for each other.
        overlap_p2p_comm=layout.chunks > 1,
        batch_p2p_comm=layout.chunks == 1,
        sequence_parallel=provider.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        # A step's gradient is the mean over the unmasked tokens of the global batch, regardless of how it is split.
        calculate_per_token_loss=True,
        # `randomise` draws the weights, or a checkpoint is loaded, both after building.
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


def _mark_tensor_parallel(model: DistillableGPTModel) -> None:
    """Mark the sharded weights, as megatron-core does when it initialises them itself.

    An unmarked shard is taken for a replica of tensor-parallel rank 0's weight, and is left out of the gradient norm.
    """
    for module in model.modules():
        if isinstance(module, (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)):
            weight = getattr(module, "weight", None)
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(weight, True, int(isinstance(module, RowParallelLinear)), 1)
