"""The layout that `balanced` gives a teacher without one of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.models.llama import llama31_70b, llama32_3b
from megatron_kd.placement.even_split import EVEN, even_split
from megatron_kd.placement.parameters import body_shares

MODEL = GPTModelProvider(
    num_layers=8, hidden_size=64, num_attention_heads=8, num_query_groups=4, ffn_hidden_size=256, vocab_size=256
)


@pytest.mark.parametrize(
    ("model", "world", "machine", "expected"),
    [
        (MODEL, 1, 1, (1, 1, 1)),
        (MODEL, 2, 2, (1, 2, 1)),  # stages rather than shards
        (replace(MODEL, num_layers=7), 2, 2, (2, 1, 1)),  # layers do not divide
        (replace(MODEL, num_layers=7), 4, 2, (2, 1, 2)),  # no more than two shards in a machine: two copies
        (replace(MODEL, num_layers=7, num_query_groups=1), 4, 4, (1, 1, 4)),  # neither divides
        (replace(MODEL, vocab_size=4096), 4, 4, (4, 1, 1)),  # a large embedding would make the first stage heavy
        (replace(MODEL, vocab_size=4096), 4, 1, (1, 4, 1)),  # but shards do not leave a machine
        (MODEL, 3, 3, (1, 1, 3)),
        (llama31_70b(), 8, 8, (2, 4, 1)),
        (llama31_70b(), 64, 8, (8, 8, 1)),
        (llama32_3b(), 64, 8, (8, 4, 2)),
    ],
)
def test_splits(model: GPTModelProvider, world: int, machine: int, expected: tuple[int, int, int]) -> None:
    assert even_split(model, world, machine) == expected


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8, 12, 16, 32])
def test_all_ranks_are_used_and_an_even_split_is_found_where_there_is_one(world: int) -> None:
    tp, pp, dp = even_split(MODEL, world, 8)
    assert tp * pp * dp == world
    worst = max(body_shares(MODEL, padded_vocab_size=256, tp=tp, pp=pp))
    possible = [
        max(body_shares(MODEL, padded_vocab_size=256, tp=t, pp=tp * pp // t))
        for t in (1, 2, 4)
        if tp * pp % t == 0 and 8 % (tp * pp // t) == 0
    ]
    assert worst <= EVEN / (tp * pp) or worst == min(possible)


def test_the_width_of_the_vocabulary_may_be_the_tokenizers() -> None:
    unknown = replace(MODEL, vocab_size=None)
    assert even_split(unknown, 4, 4) == (1, 4, 1)
    assert even_split(unknown, 4, 4, padded_vocab_size=4096) == (4, 1, 1)
