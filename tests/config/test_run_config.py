"""A whole configuration as text."""

from __future__ import annotations

from megatron_kd.config.run_config import dump_config
from tests.config.base import distillation


def test_a_dump_is_complete_ordered_and_repeatable() -> None:
    text = dump_config(distillation())
    assert text == dump_config(distillation())
    assert text.startswith("model:\n  num_layers: 4\n")
    assert "    intermediate_layer_pairs: [[decoder.final_layernorm, decoder.final_layernorm]]\n" in text
    assert text.index("\ntrain:") < text.index("\nmixed_precision:\n  precision: fp32\n")
