"""All rows, in the order of the scorecard."""

from __future__ import annotations

from tests.reliability.row import Row
from tests.reliability.rows import (
    changes,
    checkpoint_files,
    config,
    data,
    disks,
    hangs,
    hostile,
    kills,
    layouts,
    mismatches,
    numbers,
    shared_folder,
    slurm,
    soak,
)

ROWS: tuple[Row, ...] = (
    *kills.ROWS,
    *hangs.ROWS,
    *layouts.ROWS,
    *changes.ROWS,
    *disks.ROWS,
    *checkpoint_files.ROWS,
    *shared_folder.ROWS,
    *numbers.ROWS,
    *config.ROWS,
    *mismatches.ROWS,
    *data.ROWS,
    *hostile.ROWS,
    *soak.ROWS,
    *slurm.ROWS,
)


def row_named(name: str) -> Row:
    """The row of that name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in ROWS}[name]
