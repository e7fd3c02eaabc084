"""The scorecard as a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.reliability.row import Mutant, Row
from tests.reliability.worker import Outcome

HEAD = """\
# Reliability

The faults that were injected into runs, and their outcomes. `make reliability` makes all draws with the seed below,
tries the mutants, and writes this page. `make test` makes a few draws per row.

A **draw** injects the fault into a run, a file or a configuration, at a point that the seed chooses. It proves that the
fault was hit, and checks the promise. Draws run on ranks forked from one server that has imported the libraries, or in
one process; the number after the + is of draws through torchrun. A **mutant** is a change of the package's code. It is
made in a copy of the sources, and must turn at least one of at most 5 draws red.
"""


@dataclass(frozen=True)
class Scored:
    """A row, the outcome of its draws, and the outcome of its draws under each mutant."""

    row: Row
    outcome: Outcome
    mutants: Sequence[tuple[Mutant, Outcome]] = ()

    @property
    def good(self) -> bool:
        """Whether all draws are green, and every mutant was detected."""
        return self.outcome.green and all(noticed(*tried) for tried in self.mutants)


def noticed(mutant: Mutant, outcome: Outcome) -> bool:
    """Whether the check of the promise failed with the message that the mutant expects."""
    return not outcome.green and not outcome.broken and re.search(mutant.told, outcome.failure) is not None


def page(scored: Sequence[Scored], seed: int, minutes: float, versions: str) -> str:
    """The whole page, as Markdown."""
    green = sum(one.outcome.green for one in scored)
    mutants = [tried for one in scored for tried in one.mutants]
    red = sum(noticed(*tried) for tried in mutants)
    total = sum(one.outcome.forked + one.outcome.torchrun for one in scored)
    lines = [
        HEAD,
        f"Seed {seed}: {green} of {len(scored)} rows green, {total:,} draws, {red} of {len(mutants)} mutants detected, "
        f"{minutes:.0f} minutes on two cores ({versions}).",
        "",
        "| row | procedure | draws | result | mutants |",
        "|---|---|---:|---|---|",
        *map(_line, scored),
        "",
        *_failures(scored),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _line(one: Scored) -> str:
    outcome = one.outcome
    draws = f"{outcome.forked:,}" + (f" + {outcome.torchrun}" if outcome.torchrun else "")
    result = outcome.result if outcome.green else f"**red** at draw {outcome.failed_draw}"
    return f"| {one.row.name} | {one.row.procedure} | {draws} | {result} | {_mutants(one)} |"


def _mutants(one: Scored) -> str:
    outcomes = (
        f"{mutant.breaks}: {'red' if noticed(mutant, outcome) else '**not detected**'}"
        for mutant, outcome in one.mutants
    )
    return "; ".join(outcomes)


def _failures(scored: Sequence[Scored]) -> list[str]:
    red = [one for one in scored if not one.outcome.green]
    return [text for one in red for text in (f"## {one.row.name}", "", "```text", one.outcome.failure, "```", "")]
