"""`through_torchrun(2, fn, arg)` calls `fn(arg)` on the ranks of a real torchrun."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = "tests.reliability.launched"
_TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """How a torchrun ended.

    Attributes:
        code: its exit code, which is 1 whatever a rank's was, or the run's.
        output: of all ranks and torchrun, last part.
    """

    code: int
    output: str


def through_torchrun(
    world_size: int,
    fn: Callable[..., Any],
    *args: Any,
    folder: Path,
    timeout: float = 180,
    agent_of: Path | None = None,
    **environment: str,
) -> Ended:
    """Call `fn(*args)` on each rank of a torchrun; an int that it returns is the rank's exit code.

    `fn` is a module-level function; no process group exists when it is called. `folder` takes the call. With
    `agent_of`, a run folder, it is the torchrun of our launchers.

    Raises:
        subprocess.TimeoutExpired: it did not end.
    """
    call = folder / f"call_{fn.__name__}.pickle"
    call.write_bytes(pickle.dumps((fn, args)))
    program = ["torch.distributed.run"] if agent_of is None else ["megatron_kd.launch.agent", str(agent_of)]
    command = [
        *(sys.executable, "-m", *program, "--standalone", f"--nproc_per_node={world_size}"),
        *("-m", _PROGRAM, str(call)),
    ]
    variables = {**os.environ, "PYTHONPATH": str(_TOP), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=folder, env={**variables, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout[-20_000:])


def main() -> int:
    """On a rank."""
    fn, args = pickle.loads(Path(sys.argv[1]).read_bytes())
    code = fn(*args)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
