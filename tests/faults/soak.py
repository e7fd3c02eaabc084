"""What a long run does and needs: steps that are computed, numbers that are none, and what its process holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from megatron_kd.config.container import ConfigContainer
from tests.faults.legs import Fault, leg

NAN_RANK = 1


@dataclass(frozen=True)
class Soaked:
    """A leg of a soak.

    Attributes:
        faults: signals.
        nans: steps whose first attempt meets a NaN in the student's last layer, on one rank.
        measured: steps before which each rank writes down what its process holds.
    """

    faults: tuple[Fault, ...] = ()
    nans: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()


def soaked_leg(cfg: ConfigContainer, soaked: Soaked, folder: Path) -> int:
    """On a rank: `leg` with `soaked`. `folder` takes `computed`, a byte an attempt, `nans` and `holds_RANK`."""
    rank = int(os.environ["RANK"])
    with _steps(soaked, folder, rank):
        return leg(cfg, soaked.faults, folder)


def holds() -> dict[str, int]:
    """What this process holds: descriptors, threads, files it maps from /dev/shm, and KiB of memory of its own."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "shared": Path("/proc/self/maps").read_text().count("/dev/shm/"),
        "KiB": int(status["RssAnon"].split()[0]),
    }


@contextmanager
def _steps(soaked: Soaked, folder: Path, rank: int) -> Iterator[None]:
    from megatron_kd.training import attempts

    take_step, met, measured = attempts.take_step, set[int](), []

    def take(run: Any, batches: Any) -> Any:
        step, handle = run.step + 1, None
        if step in soaked.measured:
            measured.append(holds())
            (folder / f"holds_{rank}").write_text(json.dumps(measured))
        if rank == 0:
            _add_byte(folder / "computed")
        if rank == NAN_RANK and step in soaked.nans and step not in met:
            met.add(step)
            _add_byte(folder / "nans")
            handle = run.students[0].decoder.final_layernorm.register_forward_hook(_nan)
        try:
            return take_step(run, batches)
        finally:
            if handle is not None:
                handle.remove()

    with mock.patch.object(attempts, "take_step", take):
        yield


def _nan(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.masked_fill(torch.ones_like(output, dtype=torch.bool), float("nan"))


def _add_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def size_of(path: Path) -> int:
    """Bytes in a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def grown(folder: Path, ranks: Sequence[int] = (0, 1)) -> list[dict[str, int]]:
    """How much more each rank held at its last measurement in `folder` than at its first."""
    read = [json.loads((folder / f"holds_{rank}").read_text()) for rank in ranks]
    return [{name: last[name] - first[name] for name in first} for first, *_, last in read]
