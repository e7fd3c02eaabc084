"""Which of the teacher's layers the losses read, and in which part of the student."""

from __future__ import annotations

from collections import defaultdict

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.kd_config import ModelOptDistillConfig
from megatron_kd.config.stages import FINAL_NORM, LayerPlace, place_of
from megatron_kd.placement.grid import TeacherGrid
from megatron_kd.runtime.layout import Layout
from megatron_kd.teachers.transfers import WantedLayer


def readers(kd_config: ModelOptDistillConfig, student: GPTModelProvider, layout: Layout) -> dict[str, set[LayerPlace]]:
    """By teacher layer: the places of the student's layers that are compared with it, the head's among them."""
    found: dict[str, set[LayerPlace]] = defaultdict(set)
    sizes = {"num_layers": student.num_layers, "stages": layout.pp.size, "chunks": layout.chunks}
    found[FINAL_NORM].add(_known(FINAL_NORM, place_of(FINAL_NORM, **sizes)))
    for student_layer, teacher_layer, *_ in kd_config.intermediate_layer_pairs:
        found[teacher_layer].add(_known(student_layer, place_of(student_layer, **sizes)))
    return found


def wanted_layers(
    read: dict[str, set[LayerPlace]], teacher: GPTModelProvider, grid: TeacherGrid
) -> tuple[WantedLayer, ...]:
    """What has to travel, in one order on all ranks."""
    return tuple(
        WantedLayer(
            name,
            _known(name, place_of(name, num_layers=teacher.num_layers, stages=grid.pp)).stage,
            frozenset(place.stage for place in places),
        )
        for name, places in sorted(read.items())
    )


def local_names(
    wanted: tuple[WantedLayer, ...], teacher: GPTModelProvider, grid: TeacherGrid, stage: int
) -> dict[str, str]:
    """The wanted layers of one of the teacher's stages, by global name, as that stage calls them."""
    return {
        layer.name: _known(layer.name, place_of(layer.name, num_layers=teacher.num_layers, stages=grid.pp)).local_name
        for layer in wanted
        if layer.teacher_stage == stage
    }


def _known(layer: str, place: LayerPlace | None) -> LayerPlace:
    assert place is not None, f"{layer} is not a layer: `problems` refuses it"
    return place
