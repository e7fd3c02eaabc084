"""The parts a model's description is composed of: what it is, how it is laid out, where its weights come from.

Each is a dataclass whose fields appear flat in a provider, in YAML and on the command line (`model.num_layers`). Code
that needs "the fields of the layout" or "the fields of the architecture" takes `names(ParallelLayout)` and so on, so
that a new field is declared in one place.

Field names are megatron-core's (`TransformerConfig`, `GPTModel`), so that what is known about them applies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from megatron_kd.config.on_resume import Applies, Fixed, Free

# Marks on fields of `Architecture`: what a value decides besides the computation.
_SHAPES: dict[str, Any] = {"shapes": True}  # the shape or the presence of weights
_FREE: dict[str, Any] = {"free": True}  # may differ between a student and the teacher whose layers it copies


@dataclass(kw_only=True)
class Architecture:
    """The architecture of a GPT model. Sizes are global (unsharded).

    `vocab_size` is the true number of tokens (None: the tokenizer's); the model is built
    `make_vocab_size_divisible_by` rounded up, whatever the tensor-parallel size.
    """

    num_layers: Fixed[int] = field(default=2, metadata=_SHAPES | _FREE)
    hidden_size: Fixed[int] = field(default=128, metadata=_SHAPES)
    ffn_hidden_size: Fixed[int | None] = field(default=None, metadata=_SHAPES)  # None: 4 x hidden_size
    num_attention_heads: Fixed[int] = field(default=4, metadata=_SHAPES)
    # None: num_attention_heads, i.e. no grouped-query attention
    num_query_groups: Fixed[int | None] = field(default=None, metadata=_SHAPES)
    kv_channels: Fixed[int | None] = field(default=None, metadata=_SHAPES)  # None: hidden_size / num_attention_heads
    seq_length: Fixed[int] = field(default=1024, metadata=_FREE)
    # Not marked `shapes`: a checkpoint's vocabulary is compared when it is read, since its padding may differ.
    vocab_size: Fixed[int | None] = field(default=None, metadata=_FREE)
    make_vocab_size_divisible_by: Free[int] = field(default=128, metadata=_FREE)
    share_embeddings_and_output_weights: Fixed[bool] = False
    normalization: Fixed[Literal["RMSNorm", "LayerNorm"]] = "RMSNorm"
    layernorm_epsilon: Fixed[float] = 1e-5
    gated_linear_unit: Fixed[bool] = field(default=True, metadata=_SHAPES)
    activation_func: Fixed[Literal["silu", "gelu", "gelu_tanh", "relu"]] = "silu"
    add_bias_linear: Fixed[bool] = field(default=False, metadata=_SHAPES)
    add_qkv_bias: Fixed[bool] = field(default=False, metadata=_SHAPES)
    qk_layernorm: Fixed[bool] = field(default=False, metadata=_SHAPES)
    position_embedding_type: Fixed[Literal["rope", "learned_absolute", "none"]] = "rope"
    rotary_base: Fixed[float] = 10000.0
    rotary_percent: Fixed[float] = 1.0
    rope_scaling: Fixed[bool] = False  # Llama-3 frequency scaling (low 1, high 4, original context 8192)
    rope_scaling_factor: Fixed[float] = 8.0
    attention_dropout: Applies[float] = field(default=0.0, metadata=_FREE)
    hidden_dropout: Applies[float] = field(default=0.0, metadata=_FREE)
    init_method_std: Free[float] = field(default=0.02, metadata=_FREE)
    # For exported models alone (None: seq_length)
    max_position_embeddings: Free[int | None] = field(default=None, metadata=_FREE)

    @property
    def query_groups(self) -> int:
        """Groups of attention heads that share keys and values."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels of one attention head; of a model without heads, which `checks` refuse, the hidden size."""
        return self.kv_channels or self.hidden_size // max(self.num_attention_heads, 1)

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def positions(self) -> int:
        """Positions that an exported model promises."""
        return self.max_position_embeddings or self.seq_length


@dataclass(kw_only=True)
class ParallelLayout:
    """How a model is divided over ranks. The defaults are one whole copy on each rank."""

    tensor_model_parallel_size: Free[int] = 1
    pipeline_model_parallel_size: Free[int] = 1
    virtual_pipeline_model_parallel_size: Free[int | None] = None
    context_parallel_size: Free[int] = 1
    sequence_parallel: Free[bool] = False

    @property
    def chunks(self) -> int:
        """Parts that each pipeline stage's layers are cut into."""
        return self.virtual_pipeline_model_parallel_size or 1


@dataclass(kw_only=True)
class Recompute:
    """Activation recompute, megatron-core's three settings."""

    recompute_granularity: Free[Literal["full", "selective"] | None] = None
    recompute_method: Free[Literal["uniform", "block"] | None] = None
    recompute_num_layers: Free[int | None] = None


@dataclass(kw_only=True)
class FakeQuantization:
    """Fake quantization of a student's linear layers while it is trained (docs/quantization.md).

    Scales are fixed at the start, those of inputs over `quantization_calibration_batches` global batches of the
    training data.
    """

    quantization: Fixed[Literal["int8", "int8_weight_only", "fp8", "int4_weight_only", "nvfp4"] | None] = None
    quantization_calibration_batches: Free[int] = 8


@dataclass(kw_only=True)
class WeightOrigin:
    """Where a model's weights come from. Random is never a silent default.

    A student starts from `checkpoint.pretrained_checkpoint`, `init="random"`, layers of its teacher
    (`init="from_teacher"`) or from `hf_path`, a teacher from its own `checkpoint`, `init="random"` or `hf_path`.
    """

    init: Fixed[Literal["random", "from_teacher"] | None] = None
    checkpoint: Fixed[str | None] = None
    hf_path: Fixed[str | None] = None  # a Hugging Face folder, whose config.json is the architecture too


@dataclass(kw_only=True)
class TeacherPlacement:
    """Where the teacher of a distillation lives, and in which form.

    Attributes:
        teacher_device_strategy: `colocated` shards the teacher like the student, in the student's own pipeline;
            `balanced` spreads it over all ranks in a layout of its own; `gpu0` keeps it on `teacher_rank` alone;
            `cpu` keeps it in host memory; `auto` takes the fastest of these that fits.
        teacher_rank: the rank that holds the teacher under `gpu0`.
        share_teacher: under `cpu`, one copy per machine, shared by its ranks; otherwise one copy per rank.
        teacher_dtype: the teacher's own precision (None: the student's compute precision).
        teacher_quantization: `int8` keeps the teacher's matrices as int8 with one scale per row; computation is in
            `teacher_dtype`.
        teacher_micro_batch_size: sequences of one teacher forward, outside `colocated` (None: the student's). The
            teacher keeps no activations, so it may be larger.
    """

    teacher_device_strategy: Free[Literal["auto", "colocated", "balanced", "gpu0", "cpu"]] = "auto"
    teacher_rank: Free[int] = 0
    share_teacher: Free[bool] = True
    teacher_dtype: Fixed[Literal["float32", "bfloat16", "float16"] | None] = None
    teacher_quantization: Fixed[Literal["int8"] | None] = None
    teacher_micro_batch_size: Free[int | None] = None


def names(part: type) -> tuple[str, ...]:
    """The fields of a part, in order."""
    return tuple(item.name for item in fields(part))


# The architecture's fields that a checkpoint's model must have alike for its weights to fit.
WEIGHT_SHAPES = tuple(item.name for item in fields(Architecture) if item.metadata.get("shapes"))
# The architecture's fields in which a student may differ from the teacher whose layers it copies.
FREE_IN_A_COPY = tuple(item.name for item in fields(Architecture) if item.metadata.get("free"))
# Sizes that follow, where they are None, from others: see the properties of Architecture.
FOLLOW_FROM = {
    "ffn_hidden_size": ("hidden_size",),
    "num_query_groups": ("num_attention_heads",),
    "kv_channels": ("hidden_size", "num_attention_heads"),
}
# The layout of a run in which every rank holds a whole copy.
ONE_RANK: dict[str, Any] = {item.name: item.default for item in fields(ParallelLayout)}
