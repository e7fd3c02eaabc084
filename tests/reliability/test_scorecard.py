"""A small part of the scorecard: a draw of each row, and that a broken promise turns a row red."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.reliability.processes import TOP, mutant_outcome
from tests.reliability.report import noticed
from tests.reliability.row import Row
from tests.reliability.rows import ROWS, row_named

DRAWN = [row for row in ROWS if row.draws > 1]  # the others are a single long run
NOTICED = ("kill -9 during deletion", "disk full at 10 sizes")


@pytest.mark.slow
@pytest.mark.parametrize("row", DRAWN, ids=lambda row: row.name)
def test_a_draw(row: Row, tmp_path: Path) -> None:
    number = row.mutant_draws[0] if row.mutant_draws else 0
    assert row.draw(row.draw_of(number, 0, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTICED)
def test_a_mutant_turns_the_row_red(name: str) -> None:
    row = row_named(name)
    outcome = mutant_outcome(row, row.mutants[0], 0)
    assert noticed(row.mutants[0], outcome), outcome


def test_rows_have_names_of_their_own_and_mutants() -> None:
    assert not [name for name, count in Counter(row.name for row in ROWS).items() if count > 1]
    assert all(row.mutants and row.torchrun is not None for row in ROWS)


def test_mutants_change_one_place_of_the_code() -> None:
    mutants = [(row.name, mutant) for row in ROWS for mutant in row.mutants]
    found = {(name, mutant.breaks): (TOP / mutant.path).read_text().count(mutant.old) for name, mutant in mutants}
    assert not {which: count for which, count in found.items() if count != 1}
