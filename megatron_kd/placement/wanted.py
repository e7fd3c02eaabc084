"""Which of the teacher's layers the losses read, and where. Pure arithmetic, of the plan's as of the run's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_kd.config.stages import FINAL_NORM, LayerPlace, place_of
from megatron_kd.placement.grid import Grid

# By teacher layer: the places of the student's layers that are compared with it.
Readers = Mapping[str, frozenset[LayerPlace]]


@dataclass(frozen=True)
class WantedLayer:
    """A teacher layer whose output the student's losses read.

    Attributes:
        name: in the whole teacher.
        local_name: in the teacher's stage that has it.
        teacher_stage: that stage.
        student_stages: the student's stages whose losses read it.
    """

    name: str
    local_name: str
    teacher_stage: int
    student_stages: frozenset[int]


def readers(pairs: Sequence[Sequence[str]], student_place: Callable[[str], LayerPlace | None]) -> Readers:
    """The layers that the losses read: those of `pairs`, and the final norm's, from which the logits come.

    Args:
        pairs: `kd_config.intermediate_layer_pairs`; one whose student layer does not exist is left out.
        student_place: where a layer of the student is; None for one that does not exist.
    """
    found: dict[str, set[LayerPlace]] = defaultdict(set)
    for student_layer, teacher_layer, *_ in ([FINAL_NORM, FINAL_NORM], *pairs):
        place = student_place(student_layer)
        if place is not None:
            found[teacher_layer].add(place)
    return {name: frozenset(places) for name, places in found.items()}


def read_on(read: Readers, stage: int, chunk: int | None = None) -> list[str]:
    """The teacher's layers that a stage of the student reads, or one chunk of it; in one order on all ranks."""
    return sorted(
        name
        for name, places in read.items()
        if any(place.stage == stage and chunk in (None, place.chunk) for place in places)
    )


def wanted_layers(read: Readers, num_layers: int, grid: Grid) -> tuple[WantedLayer, ...]:
    """The layers whose outputs travel from a teacher of `num_layers` on `grid`, in one order on all ranks."""
    places = {name: place_of(name, num_layers=num_layers, stages=grid.pp) for name in sorted(read)}
    return tuple(
        WantedLayer(name, place.local_name, place.stage, frozenset(reader.stage for reader in read[name]))
        for name, place in places.items()
        if place is not None
    )
