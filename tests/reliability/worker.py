"""`python -m tests.reliability.worker ROW --output FILE` makes the draws of one row and writes down how they went.

It is a process of its own, so that a mutant's code is imported by nothing else, and a draw that hangs ends with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.reliability.row import Facts, Row
from tests.reliability.rows import row_named

_SHOWN = 6_000  # characters of a failure


@dataclass
class Outcome:
    """How the draws of a row went.

    Attributes:
        forked: draws that held, on forked ranks or in one process.
        torchrun: draws that held, through torchrun.
        result: what the row says of them; empty where it is red.
        failure: of the first draw that did not hold; empty where the row is green.
        broken: the draw failed otherwise than by the check of a promise (AssertionError): the row itself is wrong.
        failed_draw: its number; -1 for those through torchrun, and for the verdict over all draws.
        seconds: of all draws.
    """

    forked: int = 0
    torchrun: int = 0
    result: str = ""
    failure: str = ""
    broken: bool = False
    failed_draw: int = -1
    seconds: float = 0.0

    @property
    def green(self) -> bool:
        """Whether the promise held in all draws."""
        return not self.failure


def outcome_of(row: Row, numbers: list[int], seed: int, folder: Path, *, through_torchrun: bool) -> Outcome:
    """Make the draws `numbers` of a row, and those through torchrun, up to the first that does not hold."""
    outcome, facts, start = Outcome(), list[Facts](), time.monotonic()
    try:
        for number in numbers:
            outcome.failed_draw = number
            draw = row.draw_of(number, seed, folder)
            facts.append(row.draw(draw))
            outcome.forked += 1
            shutil.rmtree(draw.folder, ignore_errors=True)
        outcome.failed_draw = -1
        if through_torchrun and row.torchrun is not None:
            made = row.torchrun(row.draw_of(row.draws, seed, folder))
            outcome.torchrun = len(made)
            facts += made
        outcome.result = row.result(facts)
    except Exception as error:  # a draw may fail in any way; what it was goes into the report
        outcome.failure = traceback.format_exc()[-_SHOWN:]
        outcome.broken = not isinstance(error, AssertionError)
    outcome.seconds = time.monotonic() - start
    return outcome


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.worker")
    parser.add_argument("row")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--draws", type=int, nargs="*", help="their numbers; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-torchrun", dest="torchrun", action="store_false")
    args = parser.parse_args()
    row = row_named(args.row)
    numbers = list(range(row.draws)) if args.draws is None else args.draws
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        outcome = outcome_of(row, numbers, args.seed, Path(folder), through_torchrun=args.torchrun)
    args.output.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
