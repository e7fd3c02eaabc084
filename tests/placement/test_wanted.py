"""The layers that travel, and where they are read."""

from __future__ import annotations

from megatron_kd.config.stages import FINAL_NORM, LayerPlace, place_of
from megatron_kd.placement.grid import Grid
from megatron_kd.placement.wanted import Readers, WantedLayer, read_on, readers, wanted_layers

NORM = "decoder.layers.{}.input_layernorm"
PAIRS = [[NORM.format(0), NORM.format(3), "mse"], [NORM.format(3), NORM.format(3)], [NORM.format(9), NORM.format(0)]]


def read_in_two_stages_of_two_chunks() -> Readers:
    return readers(PAIRS, lambda layer: place_of(layer, num_layers=4, stages=2, chunks=2))


def test_a_layer_is_read_where_the_students_layers_are() -> None:
    read = read_in_two_stages_of_two_chunks()
    local = NORM.format(0)
    assert read == {
        FINAL_NORM: {LayerPlace(1, 1, FINAL_NORM)},
        NORM.format(3): {LayerPlace(0, 0, local), LayerPlace(1, 1, local)},  # layer 9 of the student does not exist
    }


def test_what_a_stage_and_a_chunk_read() -> None:
    read = read_in_two_stages_of_two_chunks()
    assert read_on(read, 0) == read_on(read, 0, 0) == [NORM.format(3)]
    assert read_on(read, 0, 1) == []
    assert read_on(read, 1, 1) == [FINAL_NORM, NORM.format(3)]


def test_what_travels_from_which_of_the_teachers_stages() -> None:
    wanted = wanted_layers(read_in_two_stages_of_two_chunks(), 8, Grid(1, 4, 1))
    assert wanted == (
        WantedLayer(FINAL_NORM, FINAL_NORM, 3, frozenset({1})),
        WantedLayer(NORM.format(3), NORM.format(1), 1, frozenset({0, 1})),
    )
