"""`run_dir/exit_code`: how the run ended. torchrun returns 1 whatever its children returned."""

from __future__ import annotations

import fcntl
from pathlib import Path

# When ranks end differently, the file tells the cause, not its consequence on the other ranks.
_CAUSES_FIRST = (17, 18, 75, 2, 1, 0)


def record_exit_code(run_dir: Path, code: int) -> None:
    """Write `code` to `run_dir/exit_code`, unless another rank has already written a more telling one."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "exit_code", "a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = file.read().strip()
        if not known or _rank(code) < _rank(int(known)):
            file.truncate(0)
            file.write(f"{code}\n")


def clear_exit_code(run_dir: Path) -> None:
    """Forget how an earlier attempt in the same folder ended."""
    (run_dir / "exit_code").unlink(missing_ok=True)


def _rank(code: int) -> int:
    return _CAUSES_FIRST.index(code) if code in _CAUSES_FIRST else _CAUSES_FIRST.index(1)
