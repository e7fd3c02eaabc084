"""ModelOpt comes without what a distillation does not need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_kd

PACKAGE = Path(megatron_kd.__file__).parent


@pytest.mark.slow
def test_training_imports_neither_transformers_nor_what_its_trainer_needs() -> None:
    program = "import sys, megatron_kd.training.train, megatron_kd.students.minitron; print(*sys.modules)"
    command = [sys.executable, "-W", "ignore", "-c", program]
    imported = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "modelopt.torch.distill.plugins.megatron" in imported
    assert not imported & {"transformers", "datasets", "pyarrow", "pandas", "sklearn", "accelerate", "peft"}


def test_modelopt_is_imported_in_one_place() -> None:
    importing = [
        p for p in PACKAGE.rglob("*.py") if re.search(r"^\s*(from|import) modelopt", p.read_text(), re.MULTILINE)
    ]
    assert importing == [PACKAGE / "runtime" / "modelopt.py"]


@pytest.mark.slow
def test_transformers_can_be_imported_afterwards() -> None:
    program = "import megatron_kd.runtime.modelopt, transformers; print(transformers.AutoTokenizer.__name__)"
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "AutoTokenizer\n"
