"""A row of the scorecard: a fault and the guarantee under it, drawn many times."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = dict[str, Any]  # what one draw has seen, in JSON's types


@dataclass(frozen=True)
class Draw:
    """One application of a row's fault.

    Attributes:
        number: counted from 0.
        random: gives the same numbers for the same seed, row and draw.
        folder: an empty one, of this draw alone.
        shared: a folder of all draws of the row, for what is made once, such as the run without faults.
    """

    number: int
    random: random.Random
    folder: Path
    shared: Path


@dataclass(frozen=True)
class Mutant:
    """A change of one file that breaks a promise.

    Attributes:
        breaks: in a few words, what the changed code no longer does.
        path: of the file, from the top folder.
        old: what is replaced; occurs once in the file.
        new: what it is replaced by.
        told: a regular expression that the failure must match; without it, a change that breaks everything would count.
    """

    breaks: str
    path: str
    old: str
    new: str
    told: str


def count(facts: Sequence[Facts]) -> str:
    """The result of a row that only reports how many draws held."""
    return f"{len(facts)} of {len(facts)}"


@dataclass(frozen=True)
class Row:
    """A fault with a promise.

    Attributes:
        name: short and unique, in lower case.
        procedure: what is done in a draw and what must hold then, in a sentence or two.
        draw: does one on ranks forked from a server, or in this process; raises AssertionError where the promise fails.
        draws: how many of those make a row; the number of a draw may choose the case.
        torchrun: makes at least 5 draws through torchrun in one call, as a user would start them.
        result: summarises the facts of all draws; raises AssertionError if too few faults hit.
        mutants: each turns a draw red; tried on the draws of `mutant_draws`, the first 5 where that is empty.
        alone: nothing else may run beside it, since it measures times.
    """

    name: str
    procedure: str
    draw: Callable[[Draw], Facts]
    draws: int
    torchrun: Callable[[Draw], list[Facts]] | None = None
    result: Callable[[Sequence[Facts]], str] = count
    mutants: tuple[Mutant, ...] = field(default=())
    mutant_draws: tuple[int, ...] = ()
    alone: bool = False

    def draw_of(self, number: int, seed: int, folder: Path) -> Draw:
        """The draw of that number, whose folders are made below `folder`."""
        own, shared = folder / f"draw_{number}", folder / "shared"
        own.mkdir(parents=True)
        shared.mkdir(exist_ok=True)
        return Draw(number, random.Random(f"{seed}/{self.name}/{number}"), own, shared)
