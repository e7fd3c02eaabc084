"""Where the layers that the losses compare are."""

from __future__ import annotations

import re

from megatron_kd.planning.setup import Setup

FINAL_NORM = "decoder.final_layernorm"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.\w[\w.]*")


def stage_of(layer: str, num_layers: int, stages: int, chunks: int = 1) -> int:
    """The pipeline stage that holds `layer`, where layers are dealt evenly to `stages` x `chunks`."""
    match = _LAYER.fullmatch(layer)
    if match is None:
        return stages - 1
    return int(match[1]) // max(num_layers // (stages * chunks), 1) % stages


def pairs_on(plan: Setup, stage: int) -> list[list[str]]:
    """The pairs whose loss is computed on a stage of the student."""
    sizes = plan.model.num_layers, plan.student.pp, plan.chunks
    return [pair for pair in plan.model.kd_config.intermediate_layer_pairs if stage_of(pair[0], *sizes) == stage]


def delivered_layers(plan: Setup, stage: int) -> set[str]:
    """The teacher's layers whose output the losses of a stage read; the logit loss reads the final norm's."""
    found = {pair[1] for pair in pairs_on(plan, stage)}
    return found | {FINAL_NORM} if stage == plan.student.pp - 1 else found
