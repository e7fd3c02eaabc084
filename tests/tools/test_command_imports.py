"""The table of import times: what it reads from Python's report, and that a command of it runs."""

from __future__ import annotations

from pathlib import Path

from tools.bench.command_imports import import_times, measure, prepare

REPORT = """\
import time: self [us] | cumulative | imported package
import time:      2000 |       2000 |   torch.nn
import time:      1000 |       9000 | torch
warning: another line
import time:       500 |        500 | json
"""


def test_times_are_summed_by_library() -> None:
    assert import_times(REPORT) == {"torch": 0.003, "json": 0.0005}


def test_a_small_text_is_tokenised_without_heavy_imports(tmp_path: Path) -> None:
    prepare(tmp_path)
    row = measure("preprocess", tmp_path, rounds=1)
    assert (tmp_path / "out.idx").is_file()
    assert row.cpu < 5 and row.imports < row.cpu * 2
    assert "tokenizers" in row.libraries and not {"torch", "transformers", "megatron", "sklearn"} & set(row.libraries)
