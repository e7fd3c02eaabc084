"""Command lines checked in a new process, which must not need torch to find what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_kd.resolve.configuration import check_config
from tests.config.base import distillation

_TOP = Path(__file__).resolve().parents[2]


def errors_of(commands: Sequence[Sequence[str]], world_size: int | None = None) -> list[list[str]]:
    """The errors of each command line, applied to a distillation without problems."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.config.fresh", str(world_size or "")],
        env={name: value for name, value in os.environ.items() if name != "WORLD_SIZE"},
        input=json.dumps(commands), cwd=_TOP, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told: list[list[str]] = json.loads(done.stdout)
    return told


def main() -> None:
    """The new process."""
    world_size = int(sys.argv[1]) if sys.argv[1] else None
    told = [list(map(str, check_config(distillation(), words, world_size).problems)) for words in json.load(sys.stdin)]
    assert "torch" not in sys.modules, "torch was imported"
    print(json.dumps(told))


if __name__ == "__main__":
    main()
