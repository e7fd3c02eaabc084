"""Where the layers that the losses compare are."""

from __future__ import annotations

from megatron_kd.config.stages import FINAL_NORM, place_of
from megatron_kd.planning.setup import Setup


def stage_of(layer: str, num_layers: int, stages: int, chunks: int = 1) -> int | None:
    """The pipeline stage that holds `layer`, where layers are dealt evenly to `stages` x `chunks`."""
    place = place_of(layer, num_layers=num_layers, stages=stages, chunks=chunks)
    return None if place is None else place.stage


def pairs_on(plan: Setup, stage: int) -> list[list[str]]:
    """The pairs whose loss is computed on a stage of the student."""
    sizes = plan.model.num_layers, plan.student.pp, plan.chunks
    return [pair for pair in plan.model.kd_config.intermediate_layer_pairs if stage_of(pair[0], *sizes) == stage]


def delivered_layers(plan: Setup, stage: int) -> set[str]:
    """The teacher's layers whose output the losses of a stage read; the logit loss reads the final norm's."""
    found = {pair[1] for pair in pairs_on(plan, stage)}
    return found | {FINAL_NORM} if stage == plan.student.pp - 1 else found
