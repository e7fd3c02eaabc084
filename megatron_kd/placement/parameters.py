"""How many parameters a rank holds of a model: exact counts from a provider's values, without torch.

N heads, K query groups, D channels of a head, H hidden, F feed-forward and V padded vocabulary width.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kd.config.gpt_model import GPTModelProvider


@dataclass(frozen=True)
class LayerSizes:
    """Widths of one layer on one tensor-parallel rank, in elements.

    Attributes:
        hidden: H, never divided.
        queries: N D / tp, of the queries and of the attention's output.
        keys: K D / tp, of the keys, and again of the values.
        ffn: F / tp, of the feed-forward's inner state.
        fc1: the output of its first matrix: twice `ffn` if gated.
    """

    hidden: int
    head: int
    queries: int
    keys: int
    ffn: int
    fc1: int

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values together."""
        return self.queries + 2 * self.keys


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters on a rank, by part.

    Attributes:
        embedding: of tokens, and of positions where they are learned.
        layers: all layers of this stage.
        final_norm: of the last stage.
        head: the output layer; 0 where it is the embedding's own memory.
        matrix_elements: of `layers`, those in matrices, which quantisation covers.
        matrix_rows: the rows of those matrices.
        largest_matrix: elements of the largest of them.
    """

    embedding: int
    layers: int
    final_norm: int
    head: int
    matrix_elements: int
    matrix_rows: int
    largest_matrix: int

    @property
    def body(self) -> int:
        """Everything but the head."""
        return self.embedding + self.layers + self.final_norm

    @property
    def total(self) -> int:
        """Everything."""
        return self.body + self.head


def layer_sizes(model: GPTModelProvider, tp: int) -> LayerSizes:
    """The widths of a layer of `model` sharded over `tp` ranks."""
    head, ffn = model.head_size, model.ffn_size // tp
    return LayerSizes(
        hidden=model.hidden_size,
        head=head,
        queries=model.num_attention_heads * head // tp,
        keys=model.query_groups * head // tp,
        ffn=ffn,
        fc1=ffn * (2 if model.gated_linear_unit else 1),
    )


def shard_parameters(
    model: GPTModelProvider, *, padded_vocab_size: int, tp: int = 1, pp: int = 1, stage: int = 0
) -> Parameters:
    """The parameters of `model` on a rank of pipeline stage `stage`, divided over `tp` x `pp` ranks.

    The model's own layout fields are not read. Virtual chunks of a stage are counted together.
    """
    matrices = _matrices(layer_sizes(model, tp))
    rows = sum(rows for rows, _ in matrices)
    elements = sum(rows * columns for rows, columns in matrices)
    layers_here = model.num_layers // pp
    first, last = stage == 0, stage == pp - 1
    table = padded_vocab_size // tp * model.hidden_size
    positions = model.seq_length * model.hidden_size if model.position_embedding_type == "learned_absolute" else 0
    # Tied weights are one tensor on a single stage; with more, the last has a copy that is kept equal.
    own_head = last and not (model.share_embeddings_and_output_weights and pp == 1)
    return Parameters(
        embedding=table + positions if first else 0,
        layers=layers_here * (elements + _vectors(model, tp)),
        final_norm=_norm(model, model.hidden_size) if last else 0,
        head=table if own_head else 0,
        matrix_elements=layers_here * elements,
        matrix_rows=layers_here * rows,
        largest_matrix=max(rows * columns for rows, columns in matrices),
    )


def body_shares(model: GPTModelProvider, *, padded_vocab_size: int, tp: int, pp: int) -> list[float]:
    """By stage: the share of the whole body (embedding, layers and final norm) that a rank holds."""
    sizes = {"padded_vocab_size": padded_vocab_size}
    whole = shard_parameters(model, **sizes).body
    return [shard_parameters(model, tp=tp, pp=pp, stage=stage, **sizes).body / whole for stage in range(pp)]


def _matrices(sizes: LayerSizes) -> list[tuple[int, int]]:
    """Rows and columns of a layer's matrices: QKV, projection, both of the feed-forward."""
    return [
        (sizes.qkv, sizes.hidden),
        (sizes.hidden, sizes.queries),
        (sizes.fc1, sizes.hidden),
        (sizes.hidden, sizes.ffn),
    ]


def _vectors(model: GPTModelProvider, tp: int) -> int:
    """The number of a layer's parameters outside matrices: norms and biases."""
    sizes = layer_sizes(model, tp)
    count = 2 * _norm(model, sizes.hidden)
    if model.qk_layernorm:
        count += 2 * _norm(model, sizes.head)
    if model.add_bias_linear or model.add_qkv_bias:
        count += sizes.qkv
    if model.add_bias_linear:
        # Those of the row-parallel matrices are whole on every rank: they are added after the sum over ranks.
        count += sizes.fc1 + 2 * sizes.hidden
    return count


def _norm(model: GPTModelProvider, width: int) -> int:
    return width * (2 if model.normalization == "LayerNorm" else 1)
