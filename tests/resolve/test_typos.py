"""A slip in any key of the configuration is refused, and the right key is what the message asks about."""

from __future__ import annotations

import random

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted
from megatron_kd.resolve.configuration import merge
from tests.config.slips import slip, suggests


def test_a_slip_in_any_key_is_refused_with_the_right_suggestion() -> None:
    cfg, draw = ConfigContainer(model=GPTDistillationProvider()), random.Random(0)
    keys = [dotted(path) for path in schema_of(cfg).leaves]
    slips = [(key, wrong) for key in keys if (wrong := slip(key, draw)) not in keys]
    assert len(slips) >= 0.95 * len(keys)
    lines = list(map(str, merge(cfg, [f"{wrong}=1" for _, wrong in slips]).problems))
    told = {wrong: line for (_, wrong), line in zip(slips, lines, strict=True)}
    assert all(line.startswith(f"{wrong}: unknown key; ") for wrong, line in told.items())
    right = [suggests(told[wrong], wrong, key) for key, wrong in slips]
    assert sum(right) >= 0.95 * len(right), [told[w] for (_, w), good in zip(slips, right, strict=True) if not good]
