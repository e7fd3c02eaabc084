"""How `balanced` divides a teacher that gives no sizes of its own: one copy over as many ranks as it can use, evenly.

Pure arithmetic; the placement and the plan call the same function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.placement.parameters import body_shares

# A split counts as even if no rank holds more than this times its fair share of the body.
EVEN = 1.1


def even_split(
    model: GPTModelProvider, world_size: int, ranks_per_machine: int, *, padded_vocab_size: int | None = None
) -> tuple[int, int, int]:
    """Tensor-, pipeline- and data-parallel sizes of a teacher over `world_size` ranks.

    Of all splits into tp x pp parts that the model allows, those with the most parts are considered: the even ones
    first, and among these the one with most pipeline stages, since stages send hidden states once and tensor
    parallelism reduces them twice per layer. Where no split is even, the one whose largest part is smallest is taken.

    Args:
        model: the teacher; its own layout fields are not read.
        world_size: number of ranks; those that the parts leave over hold further copies.
        ranks_per_machine: tensor parallelism does not leave a machine.
        padded_vocab_size: width of the embedding; None: the model's own, or, where it has none, that of its padding.

    Returns:
        (tp, pp, dp), with tp * pp * dp == world_size.
    """
    width = padded_vocab_size or _own_width(model)
    choices = list(_allowed(model, world_size, ranks_per_machine, width))
    parts = max(tp * pp for tp, pp in choices)

    def worst_share(tp: int, pp: int) -> float:
        return max(body_shares(model, padded_vocab_size=width, tp=tp, pp=pp))

    by_stages = sorted((choice for choice in choices if math.prod(choice) == parts), key=lambda choice: -choice[1])
    even = (choice for choice in by_stages if worst_share(*choice) <= EVEN / parts)
    tp, pp = next(even, None) or min(by_stages, key=lambda choice: worst_share(*choice))
    return tp, pp, world_size // (tp * pp)


def _allowed(model: GPTModelProvider, world_size: int, ranks_per_machine: int, width: int) -> Iterator[tuple[int, int]]:
    """Sizes that divide the ranks, and heads, groups, feed-forward and vocabulary, or the layers."""
    shards = math.gcd(model.num_attention_heads, model.query_groups, model.ffn_size, width, world_size)
    for tp in _divisors(math.gcd(shards, min(ranks_per_machine, world_size))):
        for pp in _divisors(math.gcd(world_size // tp, model.num_layers)):
            yield tp, pp


def _own_width(model: GPTModelProvider) -> int:
    multiple = model.make_vocab_size_divisible_by
    return -(-(model.vocab_size or multiple) // multiple) * multiple


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
