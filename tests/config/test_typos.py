"""A slip in any key of the configuration is refused, and the right key is what the message asks about."""

from __future__ import annotations

import random
import string

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.resolve import merge
from megatron_kd.config.schema import dotted, schema_of
from megatron_kd.distillation.provider import GPTDistillationProvider

DRAWS = 1  # slips of each key


def slip(word: str, draw: random.Random) -> str:
    """`word` with one letter dropped, added, replaced or swapped with its neighbour."""
    place, letter = draw.randrange(len(word) - 1), draw.choice(string.ascii_lowercase)
    head, tail = word[:place], word[place:]
    return head + draw.choice([tail[1:], letter + tail, letter + tail[1:], tail[1] + tail[0] + tail[2:]])


def test_a_slip_in_any_key_is_refused_with_the_right_suggestion() -> None:
    cfg, draw = ConfigContainer(model=GPTDistillationProvider()), random.Random(0)
    keys = [dotted(path) for path in schema_of(cfg).leaves]
    slips = [(key, wrong) for key in keys for _ in range(DRAWS) if (wrong := slip(key, draw)) not in keys]
    assert len(slips) >= 0.95 * DRAWS * len(keys)
    _, lines, _ = merge(cfg, [f"{wrong}=1" for _, wrong in slips])
    told = {wrong: line for (_, wrong), line in zip(slips, lines, strict=True)}
    assert all(line.startswith(f"{wrong}: unknown key; ") for wrong, line in told.items())
    right = [f"did you mean {key}?" in told[wrong] for key, wrong in slips]
    assert sum(right) >= 0.95 * len(right), [told[w] for (_, w), good in zip(slips, right, strict=True) if not good]
