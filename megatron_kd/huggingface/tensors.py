"""The one table between Hugging Face's tensors and megatron-core's, read in both directions.

megatron-core keeps Q, K and V as one matrix, group by group (its queries, its key, its value), and gate and up
projection as one matrix, gate above up. All of it is blocks of whole rows: `blocks` says which rows of which tensor
go where, and import, export and the shapes of both sides follow from it. Nothing here needs torch.

V vocabulary, H hidden, Q all queries' channels, K all keys' (or values'), D channels of a head, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_kd.config.gpt_model import GPTModelProvider

_LAYERS = "decoder.layers."  # keys that all layers share, the layer being an index of its own


def _always(model: GPTModelProvider) -> bool:
    return True


def _untied(model: GPTModelProvider) -> bool:
    return not model.share_embeddings_and_output_weights


def _qkv_bias(model: GPTModelProvider) -> bool:
    return model.add_qkv_bias or model.add_bias_linear


def _bias(model: GPTModelProvider) -> bool:
    return model.add_bias_linear


def _qk_norm(model: GPTModelProvider) -> bool:
    return model.qk_layernorm


@dataclass(frozen=True)
class Row:
    """One tensor of megatron-core and what it consists of.

    Attributes:
        key: its name in a checkpoint.
        sources: the Hugging Face tensors it is made of, in order, `{}` being the layer, with their shapes in letters.
        when: whether a model has it.
        by_group: interleaved by query group; otherwise the sources are stacked.
    """

    key: str
    sources: dict[str, str]
    when: Callable[[GPTModelProvider], bool] = _always
    by_group: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return self.key.startswith(_LAYERS)


_HF = "model.layers.{}."

TABLE = (
    Row("embedding.word_embeddings.weight", {"model.embed_tokens.weight": "VH"}),
    Row(f"{_LAYERS}self_attention.linear_qkv.layer_norm_weight", {f"{_HF}input_layernorm.weight": "H"}),
    Row(f"{_LAYERS}self_attention.linear_qkv.weight",
        {f"{_HF}self_attn.q_proj.weight": "QH", f"{_HF}self_attn.k_proj.weight": "KH",
         f"{_HF}self_attn.v_proj.weight": "KH"}, by_group=True),
    Row(f"{_LAYERS}self_attention.linear_qkv.bias",
        {f"{_HF}self_attn.q_proj.bias": "Q", f"{_HF}self_attn.k_proj.bias": "K", f"{_HF}self_attn.v_proj.bias": "K"},
        when=_qkv_bias, by_group=True),
    Row(f"{_LAYERS}self_attention.q_layernorm.weight", {f"{_HF}self_attn.q_norm.weight": "D"}, when=_qk_norm),
    Row(f"{_LAYERS}self_attention.k_layernorm.weight", {f"{_HF}self_attn.k_norm.weight": "D"}, when=_qk_norm),
    Row(f"{_LAYERS}self_attention.linear_proj.weight", {f"{_HF}self_attn.o_proj.weight": "HQ"}),
    Row(f"{_LAYERS}self_attention.linear_proj.bias", {f"{_HF}self_attn.o_proj.bias": "H"}, when=_bias),
    Row(f"{_LAYERS}mlp.linear_fc1.layer_norm_weight", {f"{_HF}post_attention_layernorm.weight": "H"}),
    Row(f"{_LAYERS}mlp.linear_fc1.weight", {f"{_HF}mlp.gate_proj.weight": "FH", f"{_HF}mlp.up_proj.weight": "FH"}),
    Row(f"{_LAYERS}mlp.linear_fc1.bias", {f"{_HF}mlp.gate_proj.bias": "F", f"{_HF}mlp.up_proj.bias": "F"}, when=_bias),
    Row(f"{_LAYERS}mlp.linear_fc2.weight", {f"{_HF}mlp.down_proj.weight": "HF"}),
    Row(f"{_LAYERS}mlp.linear_fc2.bias", {f"{_HF}mlp.down_proj.bias": "H"}, when=_bias),
    Row("decoder.final_layernorm.weight", {"model.norm.weight": "H"}),
    Row("output_layer.weight", {"lm_head.weight": "VH"}, when=_untied),
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """`rows` rows of the tensor `name` from `start` on, at rows `at` and on of megatron-core's tensor."""

    name: str
    start: int
    rows: int
    at: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of megatron-core, of one layer where layers share its key.

    Attributes:
        key: its name in a checkpoint.
        layer: None for what belongs to no layer.
        shape: unsharded, without padding of the vocabulary and without the axis of the layers.
        sources: the shapes of the Hugging Face tensors it is made of, by name.
        blocks: which of their rows it is made of, from its first to its last.
    """

    key: str
    layer: int | None
    shape: tuple[int, ...]
    sources: dict[str, tuple[int, ...]]
    blocks: tuple[Block, ...]


def tensors_of(model: GPTModelProvider) -> Iterator[Tensor]:
    """All tensors of a model whose `vocab_size` is known, layer by layer, in the order of its forward pass."""
    rows = [row for row in TABLE if row.when(model)]
    first, last = (next(i for i in order if rows[i].per_layer) for order in (range(len(rows)), range(len(rows))[::-1]))
    for row in rows[:first]:
        yield _tensor(row, model, None)
    for layer in range(model.num_layers):
        for row in rows[first : last + 1]:
            yield _tensor(row, model, layer)
    for row in rows[last + 1 :]:
        yield _tensor(row, model, None)


def huggingface_shapes(model: GPTModelProvider) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of a model, with its shape, in the order of `tensors_of`."""
    return {name: shape for tensor in tensors_of(model) for name, shape in tensor.sources.items()}


def _sizes(model: GPTModelProvider) -> dict[str, int]:
    assert model.vocab_size is not None, "the vocabulary's size comes from config.json or from the checkpoint"
    return {
        "V": model.vocab_size,
        "H": model.hidden_size,
        "Q": model.num_attention_heads * model.head_size,
        "K": model.query_groups * model.head_size,
        "D": model.head_size,
        "F": model.ffn_size,
    }


def _tensor(row: Row, model: GPTModelProvider, layer: int | None) -> Tensor:
    sizes = _sizes(model)
    sources = {name.format(layer): tuple(sizes[letter] for letter in shape) for name, shape in row.sources.items()}
    parts = model.query_groups if row.by_group else 1
    blocks, at = [], 0
    for part in range(parts):
        for name, shape in sources.items():
            rows = shape[0] // parts
            blocks.append(Block(name, part * rows, rows, at))
            at += rows
    columns = next(iter(sources.values()))[1:]
    return Tensor(row.key, layer, (at, *columns), sources, tuple(blocks))
