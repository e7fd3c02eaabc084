"""The time of each command until it has done a small piece of work, and the share of it that imports take.

    python tools/bench/command_imports.py
    python tools/bench/command_imports.py --rounds 5 --only preprocess validate

Each command is a process of its own in a temporary folder: a text of 67 KB is tokenised, the tiny recipe with mock data
is checked and planned. `wall` and `CPU` are the medians of `--rounds`; `imports` is of one more process, by Python's
`-X importtime`, which makes imports somewhat slower. The last column names the slowest libraries.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_kd.data.tokens.byte_bpe import train_byte_bpe

ROOT = Path(__file__).resolve().parents[2]
_RECIPE = str(ROOT / "recipes/tiny/distill_tiny.py")
_MOCK = ("dataset={train_data_path: null, valid_data_path: null, mock: true}", "tokenizer.tokenizer_model=tokenizer")
_RANDOM = ("model.teacher.checkpoint=null", "model.teacher.init=random")
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "ls": ("ls",),
    "validate": ("validate", _RECIPE, *_MOCK, *_RANDOM),
    "plan": ("plan", _RECIPE, "--gpus", "2", "--memory", "16GB", *_MOCK, *_RANDOM),
    "launch --dry-run": ("launch", "--slurm", _RECIPE, "--gpus-per-node", "2", "--dry-run", *_MOCK, *_RANDOM),
    "preprocess": ("preprocess", "--input", "a.txt", "--split-lines", "--workers", "1", "--output-prefix", "out",
                   "--tokenizer", "tokenizer"),
}  # fmt: skip
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)")
_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """Seconds of a command, and of the imports in them by library, in descending order."""

    name: str
    wall: float
    cpu: float
    imports: float
    libraries: dict[str, float]

    def __str__(self) -> str:
        slowest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in [*self.libraries.items()][:_SHOWN])
        return f"| {self.name} | {self.wall:.2f} | {self.cpu:.2f} | {self.imports:.2f} | {slowest} |"


def import_times(report: str) -> dict[str, float]:
    """Seconds of each top-level library in the report of `-X importtime`, without what it imports of others."""
    seconds: dict[str, float] = {}
    for own, _, _, name in _LINE.findall(report):
        library = name.partition(".")[0]
        seconds[library] = seconds.get(library, 0.0) + int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def measure(name: str, folder: Path, rounds: int) -> Row:
    """Run a command `rounds` times, and once more for its imports."""
    walls, cpus = zip(*(_timed(COMMANDS[name], folder) for _ in range(rounds)), strict=True)
    done = _run(["-X", "importtime"], COMMANDS[name], folder)
    libraries = import_times(done.stderr)
    return Row(name, statistics.median(walls), statistics.median(cpus), sum(libraries.values()), libraries)


def _timed(words: Sequence[str], folder: Path) -> tuple[float, float]:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _run([], words, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def _run(options: Sequence[str], words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "megatron_kd.commands.cli", *words]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def prepare(folder: Path) -> None:
    """A tokenizer and a text of 67 KB."""
    lines = [f"line {number} of a text about {number % 7} things\n" for number in range(1800)]
    (folder / "a.txt").write_text("".join(lines)[: 67 * 1024])
    train_byte_bpe(lines, 400, folder / "tokenizer")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    args = parser.parse_args()
    print("| command | wall, s | CPU, s | imports, s | slowest libraries, s |\n|---|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary))
        for name in args.only:
            print(measure(name, Path(temporary), args.rounds), flush=True)


if __name__ == "__main__":
    main()
