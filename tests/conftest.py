"""Fixtures that the tests of several rooms share: runs that are trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.trained import Trained, configs, prepare, train_all
from tests.ranks import run_ranks


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A teacher, and a student of each layout of `STUDENTS`."""
    found = prepare(tmp_path_factory.mktemp("evaluation"))
    run_ranks(2, train_all, configs(found), timeout=180)
    return found


@pytest.fixture(scope="session")
def exported(trained: Trained) -> Path:
    """The student of tensor parallelism 2 as a Hugging Face folder, in the precision it was trained in."""
    from megatron_kd.huggingface.export import export_hf

    return export_hf(trained.student("tp2"), trained.root / "exported", dtype="float32")
