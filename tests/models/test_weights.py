"""One seed is one model: the random weights of every layout, put together, are bitwise the undivided ones."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_kd.config.gpt_model import GPTModelProvider
from tests.ranks import run_ranks

MODEL = GPTModelProvider(
    num_layers=4, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, seq_length=16,
    vocab_size=250, qk_layernorm=True, add_qkv_bias=True, init="random", init_method_std=0.3,
)  # fmt: skip
TIED = replace(MODEL, share_embeddings_and_output_weights=True)
WIDTH = 256  # of the padded vocabulary

Weights = dict[tuple[str, tuple[int, ...]], Tensor]  # whole tensors by checkpoint key and layer
Shard = tuple[str, tuple[int, ...], tuple[slice, ...], Tensor, tuple[int, ...]]


def shards(provider: GPTModelProvider, tp: int, pp: int, seed: int, dtype: str = "float32") -> list[Shard]:
    """On a rank: this rank's shards as (key, layer, place in the whole tensor, data, shape of the whole)."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, seed=99) as layout:
        model = provider.provide(layout, padded_vocab_size=WIDTH, seed=seed, dtype=dtype)
        state = model.sharded_state_dict()
        apply_factories(state)
        found = []
        for shard in nested_values(state):
            if isinstance(shard, ShardedTensor) and shard.data is not None:
                axes = shard.prepend_axis_num
                offsets = zip(shard.global_offset[axes:], shard.local_shape, strict=True)
                place = tuple(slice(start, start + size) for start, size in offsets)
                found.append((shard.key, shard.global_offset[:axes], place, shard.data.detach().clone(),
                              tuple(shard.global_shape[axes:])))  # fmt: skip
        return found


def whole(provider: GPTModelProvider, tp: int = 1, pp: int = 1, seed: int = 7, dtype: str = "float32") -> Weights:
    """The model's tensors put together from all ranks; copies of one shard must be equal."""
    weights: Weights = {}
    for rank in run_ranks(tp * pp, shards, provider, tp, pp, seed, dtype):
        for key, layer, place, data, shape in rank:
            tensor = weights.setdefault((key, layer), torch.full(shape, math.nan, dtype=data.dtype))
            assert tensor[place].isnan().all() or torch.equal(tensor[place], data), key
            tensor[place] = data
    assert not [key for key, tensor in weights.items() if tensor.isnan().any()]
    return weights


@cache
def undivided(tied: bool) -> Weights:
    return whole(TIED if tied else MODEL)


def assert_equal(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_one_seed_is_one_model_at_every_layout(tp: int, pp: int, tied: bool) -> None:
    assert_equal(whole(TIED if tied else MODEL, tp, pp), undivided(tied))


def test_another_seed_is_another_model_and_the_same_seed_the_same() -> None:
    assert_equal(whole(MODEL), undivided(False))
    other = whole(MODEL, seed=8)
    key = ("decoder.layers.mlp.linear_fc2.weight", (0,))
    assert not torch.equal(other[key], undivided(False)[key])


def test_layers_and_tensors_are_drawn_apart() -> None:
    matrices = [tensor for tensor in undivided(False).values() if tensor.dim() > 1]
    assert len({tensor.flatten()[0].item() for tensor in matrices}) == len(matrices) > 4 * 4


def test_the_scale_of_the_weights() -> None:
    weights = undivided(False)
    for (key, _), tensor in weights.items():
        if key.endswith("bias"):
            assert not tensor.any(), key
        elif tensor.dim() == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), key
        else:
            residual = key.endswith(("linear_proj.weight", "linear_fc2.weight"))
            expected = 0.3 / math.sqrt(2 * MODEL.num_layers) if residual else 0.3
            assert tensor[:250].std().item() == pytest.approx(expected, rel=0.1), key


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_padded_vocabulary_rows_are_zero(tied: bool) -> None:
    vocabulary = {key: t for (key, _), t in undivided(tied).items() if t.shape[0] == WIDTH}
    assert len(vocabulary) == (1 if tied else 2)
    for tensor in vocabulary.values():
        assert not tensor[250:].any()
        assert tensor[:250].any(dim=1).all()


def test_the_padding_does_not_change_the_draw() -> None:
    wider = run_ranks(1, wider_embedding)[0]
    key = next(key for key in undivided(False) if key[0].endswith("word_embeddings.weight"))
    assert wider.shape == (384, 32)
    assert torch.equal(wider[:250], undivided(False)[key][:250])


def wider_embedding() -> Tensor:
    """On a rank: the embedding of the same model at a wider padded vocabulary."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, seed=1) as layout:
        model = MODEL.provide(layout, padded_vocab_size=384, seed=7)
        return model.embedding.word_embeddings.weight.detach().clone()


def test_a_lower_precision_rounds_the_same_draw() -> None:
    rounded = whole(MODEL, dtype="bfloat16")
    for key, tensor in undivided(False).items():
        assert torch.equal(rounded[key], tensor.bfloat16()), key


def vocabulary_weights() -> dict[str, Any]:
    """On a rank: what the first stage embeds with and the last stage multiplies with."""
    from megatron_kd.runtime.start import running_ranks

    with running_ranks(tensor_model_parallel_size=1, pipeline_model_parallel_size=2, seed=1) as layout:
        model = TIED.provide(layout, padded_vocab_size=WIDTH, seed=7)
        return {"weight": model.shared_embedding_or_output_weight().detach().clone(), "first": layout.is_first_stage}


def test_tied_embeddings_are_equal_on_both_stages() -> None:
    first, last = run_ranks(2, vocabulary_weights)
    assert (first["first"], last["first"]) == (True, False)
    assert torch.equal(first["weight"], last["weight"])
