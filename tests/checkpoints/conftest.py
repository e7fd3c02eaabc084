"""One run of two ranks, whose checkpoints the tests copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.tiny import tiny_config, train_and_read


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of two and four steps, saved at two data-parallel ranks."""
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(2, train_and_read, tiny_config(folder, iters=4, save=True, save_interval=2, micro_batch_size=4))
    return folder


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the newest checkpoint into a folder named as given, and returns the copy."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(run_dir / "checkpoints/iter_0000004", tmp_path / name / "iter_0000004"))

    return copy
