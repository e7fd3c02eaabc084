"""Which pipeline stage holds a layer, by arithmetic on the sizes: nothing here needs a built model or torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

FINAL_NORM = "decoder.final_layernorm"
LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(\w[\w.]*)")
# Outputs other than hidden states: split over tensor-parallel ranks, with a different width.
NOT_HIDDEN = ("linear_qkv", "linear_fc1", "core_attention", "q_layernorm", "k_layernorm")


@dataclass(frozen=True)
class LayerPlace:
    """A layer's pipeline stage, the chunk of that stage (0 without a virtual pipeline), and its name there."""

    stage: int
    chunk: int
    local_name: str


def place_of(layer: str, *, num_layers: int, stages: int, chunks: int = 1) -> LayerPlace | None:
    """Where megatron-core puts `layer` when it deals `num_layers` evenly to `stages` x `chunks`.

    Args:
        layer: its name in the undivided model, `decoder.final_layernorm` or `decoder.layers.N.NAME`.
        num_layers: of the whole model.
        stages: pipeline-parallel size.
        chunks: parts of each stage; chunk c of every stage comes before chunk c + 1 of the first.

    Returns:
        None for a name that no layer can have, or a layer beyond the last.
    """
    if layer == FINAL_NORM:
        return LayerPlace(stages - 1, chunks - 1, layer)
    match = LAYER_NAME.fullmatch(layer)
    if match is None or int(match[1]) >= num_layers:
        return None
    each = max(num_layers // max(stages * chunks, 1), 1)
    part, index = divmod(int(match[1]), each)
    return LayerPlace(part % stages, part // stages, f"decoder.layers.{index}.{match[2]}")
