"""What a GPT model is: a dataclass of values. Building it needs megatron-core, describing it does not.

Field names are megatron-core's (`TransformerConfig`, `GPTModel`), so that what is known about them applies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from megatron_kd.models.gpt import DistillableGPTModel
    from megatron_kd.runtime.layout import Layout

# Formats of `quantization` that leave the inputs of linear layers as they are.
WEIGHT_ONLY = ("int8_weight_only", "int4_weight_only")


@dataclass(kw_only=True)
class GPTModelProvider:
    """A GPT model, its parallel layout and where its weights come from.

    Sizes are global (unsharded). `vocab_size` is the true number of tokens (None: the tokenizer's); the
    model is built `make_vocab_size_divisible_by` rounded up, whatever the tensor-parallel size.
    """

    # Architecture.
    num_layers: int = 2
    hidden_size: int = 128
    ffn_hidden_size: int | None = None  # None: 4 x hidden_size
    num_attention_heads: int = 4
    num_query_groups: int | None = None  # None: num_attention_heads, i.e. no grouped-query attention
    kv_channels: int | None = None  # None: hidden_size / num_attention_heads
    seq_length: int = 1024
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 128
    share_embeddings_and_output_weights: bool = False
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    layernorm_epsilon: float = 1e-5
    gated_linear_unit: bool = True
    activation_func: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    position_embedding_type: Literal["rope", "learned_absolute", "none"] = "rope"
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    rope_scaling: bool = False  # Llama-3 frequency scaling (low 1, high 4, original context 8192)
    rope_scaling_factor: float = 8.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    init_method_std: float = 0.02
    max_position_embeddings: int | None = None  # for exported models alone (None: seq_length)

    # Parallel layout.
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    context_parallel_size: int = 1
    sequence_parallel: bool = False

    # Activation recompute, megatron-core's three settings.
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: int | None = None

    # Fake quantisation of a student's linear layers while it is trained (docs/quantization.md). Scales are fixed at the
    # start, those of inputs over that many global batches of the training data.
    quantization: Literal["int8", "int8_weight_only", "fp8", "int4_weight_only", "nvfp4"] | None = None
    quantization_calibration_batches: int = 8

    # Weights. A student starts from `checkpoint.pretrained_checkpoint`, `init="random"`, layers of its teacher
    # (`init="from_teacher"`) or from `hf_path`, a teacher from its own `checkpoint`, `init="random"` or `hf_path`.
    # Random is never a silent default.
    init: Literal["random", "from_teacher"] | None = None
    checkpoint: str | None = None
    hf_path: str | None = None  # a Hugging Face folder, whose config.json is the architecture too

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
        from megatron_kd.models.build_gpt import build_gpt

        true_size = vocab_size or self.vocab_size or padded_vocab_size
        return build_gpt(
            self, layout, padded_vocab_size=padded_vocab_size, vocab_size=true_size, dtype=dtype, seed=seed, chunk=chunk
        )


def explicit(model: GPTModelProvider) -> GPTModelProvider:
    """The same model, with every size said that would otherwise follow from one that pruning changes."""
    return replace(
        model,
        ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size,
        num_query_groups=model.num_query_groups or model.num_attention_heads,
        kv_channels=model.kv_channels or model.hidden_size // model.num_attention_heads,
    )
