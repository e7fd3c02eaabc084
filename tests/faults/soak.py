"""A long run: the steps it computes, the NaNs it meets, and what its process holds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_kd.config.container import ConfigContainer
from megatron_kd.training.hooks.hook import Hook, Loop
from tests.faults.legs import Fault, leg
from tests.faults.numbers import poison

NAN_RANK = 1


@dataclass(frozen=True)
class Soaked:
    """A leg of a soak.

    Attributes:
        faults: signals.
        nans: steps whose first attempt has NaN in the student's last layer, on one rank.
        measured: steps before which each rank writes down what its process holds.
    """

    faults: tuple[Fault, ...] = ()
    nans: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()


def soaked_leg(cfg: ConfigContainer, soaked: Soaked, folder: Path) -> int:
    """On a rank: `leg` with `soaked`. `folder` takes `computed`, a byte an attempt, `nans` and `holds_RANK`."""
    return leg(cfg, soaked.faults, folder, _Steps(soaked, folder))


def holds() -> dict[str, int]:
    """The resources of this process: descriptors, threads, mapped files of /dev/shm, and KiB of private memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "shared": Path("/proc/self/maps").read_text().count("/dev/shm/"),
        "KiB": int(status["RssAnon"].split()[0]),
    }


class _Steps(Hook):
    """Measures, counts attempts at steps, and puts NaNs into some."""

    def __init__(self, soaked: Soaked, folder: Path) -> None:
        self._soaked, self._folder = soaked, folder
        self._measured: list[dict[str, int]] = []

    def before_run(self, loop: Loop) -> None:
        assert loop.run.derived.num_microbatches == 1, "a forward of the student is an attempt"
        if loop.run.layout.rank == 0:
            loop.run.students[0].register_forward_pre_hook(self._count)

    def before_step(self, loop: Loop) -> None:
        step, rank = loop.run.step + 1, loop.run.layout.rank
        if step in self._soaked.measured:
            self._measured.append(holds())
            (self._folder / f"holds_{rank}").write_text(json.dumps(self._measured))
        if rank == NAN_RANK and step in self._soaked.nans:
            _add_byte(self._folder / "nans")
            poison(loop.run, "student")

    def _count(self, student: torch.nn.Module, inputs: Any) -> None:
        if student.training:
            _add_byte(self._folder / "computed")


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
