"""All rows, in the order of the scorecard."""

from __future__ import annotations

from tests.reliability.row import Row
from tests.reliability.rows import hangs, kills, soak

ROWS: tuple[Row, ...] = (*kills.ROWS, *hangs.ROWS, *soak.ROWS)


def row_named(name: str) -> Row:
    """The row of that name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in ROWS}[name]
