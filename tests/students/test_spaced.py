"""The rule by which a student of fewer layers takes its teacher's."""

from __future__ import annotations

from itertools import pairwise

from megatron_kd.students.spaced import spaced_layers


def test_the_layers_are_evenly_spaced_from_the_first_to_the_last() -> None:
    assert spaced_layers(6, 12) == [0, 2, 4, 7, 9, 11]  # DistilBERT's
    assert spaced_layers(2, 4) == [0, 3]
    assert spaced_layers(1, 7) == [0]
    for of in range(2, 40):
        assert spaced_layers(of, of) == list(range(of))
        for count in range(2, of):
            layers = spaced_layers(count, of)
            steps = {b - a for a, b in pairwise(layers)}
            assert (layers[0], layers[-1], len(set(layers))) == (0, of - 1, count)
            assert max(steps) - min(steps) <= 1
