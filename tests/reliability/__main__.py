"""`python -m tests.reliability` runs the scorecard, and writes it to docs/reliability.md where it was all of it."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.reliability.processes import TOP, BadMutant, mutant_outcome, row_outcome
from tests.reliability.report import Scored, noticed, page
from tests.reliability.row import Mutant, Row
from tests.reliability.rows import ROWS
from tests.reliability.worker import Outcome


def main() -> int:
    """The program; returns 1 where a row is red or a mutant was not noticed."""
    args = _arguments()
    chosen = [row for row in ROWS if not args.rows or row.name in args.rows]
    if unknown := set(args.rows) - {row.name for row in ROWS}:
        print(f"error: no row is called {', '.join(sorted(unknown))}; rows: {', '.join(r.name for r in ROWS)}")
        return 2
    start = time.monotonic()
    scored = run(chosen, args.seed, args.jobs, mutants=args.mutants, draws=args.draws, torchrun=args.torchrun)
    minutes = (time.monotonic() - start) / 60
    text = page(scored, args.seed, minutes, _versions())
    print(text)
    everything = not args.rows and args.draws is None and args.mutants and args.torchrun
    if args.output is not None or everything:
        (args.output or TOP / "docs/reliability.md").write_text(text)
    return 0 if all(one.good for one in scored) else 1


def run(rows: list[Row], seed: int, jobs: int, *, mutants: bool, draws: int | None, torchrun: bool) -> list[Scored]:
    """Run rows and their mutants, `jobs` at a time; those that measure times, alone and last."""
    tasks: list[tuple[Row, Mutant | None]] = [(row, None) for row in rows]
    tasks += [(row, mutant) for row in rows for mutant in row.mutants if mutants]
    outcomes: dict[tuple[str, str], Outcome] = {}

    def work(task: tuple[Row, Mutant | None]) -> None:
        row, mutant = task
        outcome = _timed(
            lambda: (
                row_outcome(row, seed, draws, through_torchrun=torchrun)
                if mutant is None
                else _mutant(row, mutant, seed)
            )
        )
        outcomes[row.name, mutant.breaks if mutant else ""] = outcome
        _tell(row, mutant, outcome)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, [task for task in tasks if not task[0].alone]))
    list(map(work, [task for task in tasks if task[0].alone]))
    return [
        Scored(
            row,
            outcomes[row.name, ""],
            tuple((m, outcomes[row.name, m.breaks]) for m in row.mutants if mutants),
        )
        for row in rows
    ]


def _mutant(row: Row, mutant: Mutant, seed: int) -> Outcome:
    try:
        return mutant_outcome(row, mutant, seed)
    except BadMutant as error:
        print(f"error: {row.name}, {mutant.breaks}: {error}", flush=True)
        return Outcome(result="bad mutant")  # green: nothing has turned red


def _timed(work: Callable[[], Any]) -> Any:
    start = time.monotonic()
    outcome = work()
    outcome.seconds = time.monotonic() - start
    return outcome


def _tell(row: Row, mutant: Mutant | None, outcome: Outcome) -> None:
    if mutant is None:
        verdict, subject, shown = "green" if outcome.green else "red", row.name, 40
    else:
        verdict, subject, shown = (
            "red" if noticed(mutant, outcome) else "MISSED",
            f"{row.name}, mutant: {mutant.breaks}",
            3,
        )
    print(f"{outcome.seconds:6.0f} s  {verdict:6}  {subject}  {outcome.result}", flush=True)
    lines = outcome.failure.strip().splitlines()
    print("\n".join(f"            {line}" for line in lines[-shown:]), flush=True)


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "megatron-core", "nvidia-modelopt"))
    return f"Python {platform.python_version()}, {packages}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--draws", type=int, help="at most this many of each row")
    parser.add_argument("--no-mutants", dest="mutants", action="store_false")
    parser.add_argument("--no-torchrun", dest="torchrun", action="store_false")
    parser.add_argument("--output", type=Path, help="where the page goes (docs/reliability.md if all was run)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
