"""Configurations that cannot be meant, or cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.schema import schema_of
from megatron_kd.config.values import dotted, show
from megatron_kd.resolve.configuration import merge
from megatron_kd.resolve.overrides import parse_override
from tests.config.fresh import errors_of
from tests.config.illegal import CASES, RANGES
from tests.config.slips import slip, suggests
from tests.config.written import as_file, as_words
from tests.config.wrong_types import WRONG_TYPES
from tests.reliability.refusals import refused
from tests.reliability.row import Draw, Facts, Mutant, Row

SLIPS, TYPO_DRAWS = 3, 10  # per key; draws over which the keys are distributed
ILLEGAL_DRAWS = 8


def keys() -> list[str]:
    """All fields of a distillation."""
    return [dotted(path) for path in schema_of(_defaults()).leaves]


def typos(draw: Draw) -> Facts:
    """Slips in a tenth of the keys, each alone, as an override and in a file."""
    drawn, other = slips(draw, keys()[draw.number :: TYPO_DRAWS], SLIPS)
    right = 0
    for key, wrong in drawn:
        for words in forms(wrong, draw.folder):
            merged = merge(_defaults(), words)
            lines = [str(problem) for problem in merged.problems]
            assert lines and not merged.edited and merged.config == _defaults(), f"{wrong} was not refused, for {key}"
            assert len(lines) == 1 and lines[0].startswith(wrong.split(".")[0]), lines
            right += suggests(lines[0], wrong, key)
    return {"refused": 2 * len(drawn), "right": right, "other": other}


def slips(draw: Draw, among: Sequence[str], each: int) -> tuple[list[tuple[str, str]], int]:
    """Keys and slips in them; and how many slips were left out since they are other keys."""
    drawn = [(key, slip(key, draw.random)) for key in among for _ in range(each)]
    known = set(keys())
    kept = [(key, wrong) for key, wrong in drawn if wrong not in known]
    return kept, len(drawn) - len(kept)


def forms(wrong: str, folder: Path) -> Iterator[list[str]]:
    """The ways to set a field."""
    yield [f"{wrong}=1"]
    yield as_file(folder / "slip.yaml", {wrong: 1})


def typos_through_torchrun(draw: Draw) -> list[Facts]:
    """Twenty slips at a time, half of them in files."""
    facts: list[Facts] = []
    for number in range(5):
        folder = draw.folder / str(number)
        drawn, other = slips(draw, draw.random.sample(keys(), 20), 1)
        words = [f"{wrong}=1" for _, wrong in drawn[::2]]
        for index, (_, wrong) in enumerate(drawn[1::2]):
            words += as_file(draw.folder / f"{number}_{index}.yaml", {wrong: 1})
        lines = refused(folder, words)
        assert len(lines) == len(drawn), f"{len(lines)} errors were reported of {len(drawn)}: {lines}"
        in_order = [*drawn[1::2], *drawn[::2]]  # files first
        right = sum(suggests(line, wrong, key) for line, (key, wrong) in zip(lines, in_order, strict=True))
        facts.append({"refused": len(lines), "right": right, "other": other})
    return facts


def _suggestions(facts: Sequence[Facts]) -> str:
    refusals, right, other = (sum(fact[name] for fact in facts) for name in ("refused", "right", "other"))
    assert right >= 0.95 * refusals, f"only {right} of {refusals} errors suggest the right key"
    return f"{refusals} of {refusals} refused, {right} with the right key; {other} slips made another key"


@dataclass(frozen=True)
class Illegal:
    """An illegal setting, and the words that its error must contain.

    Attributes:
        edits: values by dotted names.
        words: each is in one and the same line.
    """

    edits: dict[str, Any]
    words: Sequence[str]

    def told_by(self, lines: Sequence[str]) -> None:
        """Check that one line tells it, with a field and its value."""
        found = [line for line in lines if all(word in line for word in self.words)]
        assert len(found) == 1, f"{len(found)} errors instead of 1 tell of {self.edits}: {lines}"
        values = [show(item) for value in self.edits.values() for item in _items(value)]
        assert any(name in found[0] for name in self.edits), f"no field is named: {found[0]}"
        assert any(value in found[0] for value in values), f"no value is named: {found[0]}"


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _items(item)
    yield value


def illegal_values() -> list[Illegal]:
    """Values outside their ranges, of wrong types, and those that contradict others."""
    return [*out_of_range(), *of_wrong_types(), *(Illegal(edits, words) for edits, words in CASES)]


def out_of_range() -> list[Illegal]:
    """One for each number."""
    outside = {name: type_of(name)(value) for name, (value, _, _) in RANGES.items()}
    return [Illegal({name: value}, [f"{name}={value}: must be"]) for name, value in outside.items()]


def of_wrong_types() -> list[Illegal]:
    """Those of the table."""
    edits = [(parse_override(word)[0], words) for word, words in WRONG_TYPES]
    return [Illegal({dotted(edit.path): edit.value}, words) for edit, words in edits if edit is not None]


def type_of(name: str) -> type:
    """The type that a number of that name is turned into: float where fractions are allowed."""
    annotation = schema_of(_defaults()).leaves[tuple(name.split("."))]
    return float if float in (annotation, *get_args(annotation)) else int


def illegal(draw: Draw) -> Facts:
    """An eighth of the values, each alone, as an override and in a file; then a dozen at once."""
    mine, many = illegal_values()[draw.number :: ILLEGAL_DRAWS], together(draw)
    words = [as_words(case.edits) for case in mine]
    files = [as_file(draw.folder / f"{index}.yaml", case.edits) for index, case in enumerate(mine)]
    *told, at_once = errors_of([*words, *files, [word for case in many for word in as_words(case.edits)]])
    for case, lines in zip([*mine, *mine], told, strict=True):
        case.told_by(lines)
    told_at_once(many, at_once)
    return {"values": len(mine), "together": len(many)}


def together(draw: Draw) -> list[Illegal]:
    """A dozen illegal values of different fields, none of which hides the error of another."""
    wrong = {name: case for case in of_wrong_types() for name in case.edits if name != "logger.run_dir"}
    chosen = draw.random.sample(sorted(wrong), 4)
    outside = {name: case for case in out_of_range() for name in case.edits if name not in chosen}
    numbers = draw.random.sample(sorted(outside), 8)
    return [*(wrong[name] for name in chosen), *(outside[name] for name in numbers)]


def told_at_once(cases: Sequence[Illegal], lines: Sequence[str]) -> None:
    """Check that the lines report each."""
    silent = [case.edits for case in cases if not any(all(word in line for word in case.words) for line in lines)]
    assert not silent, f"not told at once with the others: {silent}"


def illegal_through_torchrun(draw: Draw) -> list[Facts]:
    """A dozen at once, five times."""
    facts = []
    for number in range(5):
        many = together(draw)
        told_at_once(many, refused(draw.folder / str(number), [w for case in many for w in as_words(case.edits)]))
        facts.append({"values": 0, "together": len(many)})
    return facts


def _illegal(facts: Sequence[Facts]) -> str:
    values, at_once = (sum(fact[name] for fact in facts) for name in ("values", "together"))
    return f"{values} of {values} refused twice, before torch was imported; {at_once} reported in {len(facts)} dozens"


def _defaults() -> ConfigContainer:
    return ConfigContainer(model=GPTDistillationProvider())


ROWS = (
    Row(
        name="config typos",
        procedure="Each key of the configuration is written wrongly three times, with one letter dropped, added, "
        "replaced or swapped, as an override and in a YAML file. All are refused, with nothing set, and at least 95% "
        "of the errors ask whether the right key was meant.",
        draw=typos,
        draws=TYPO_DRAWS,
        torchrun=typos_through_torchrun,
        result=_suggestions,
        mutants=(
            Mutant(
                "a key that is unknown is passed over",
                "megatron_kd/resolve/edits.py",
                "        problems.append(_located(why_unknown(path, schema), edit))\n",
                "        pass\n",
                told="was not refused",
            ),
            Mutant(
                "the place where a key was written is ignored",
                "megatron_kd/config/schema.py",
                "    if slip := difflib.get_close_matches(name, map(dotted, schema.leaves), n=1, cutoff=0.9):\n"
                "        return slip[0]\n",
                "    ends = {key[-1]: dotted(key) for key in schema.leaves}\n"
                "    if slip := difflib.get_close_matches(path[-1], ends, n=1):\n"
                "        return ends[slip[0]]\n",
                told="suggest the right key",
            ),
        ),
    ),
    Row(
        name="illegal values",
        procedure="Each number outside its range, values of wrong types, and values that contradict others are given "
        "as overrides and in a YAML file: one error names field, value and cure, before torch is imported. A dozen at "
        "once are all reported at once.",
        draw=illegal,
        draws=ILLEGAL_DRAWS,
        torchrun=illegal_through_torchrun,
        result=_illegal,
        mutants=(
            Mutant(
                "fractions are not compared with their range",
                "megatron_kd/checks/ranges.py",
                "isinstance(value, int | float)",
                "isinstance(value, int)",
                told="errors instead of 1 tell of",
            ),
            Mutant(
                "of several errors only the first kind is reported",
                "megatron_kd/resolve/configuration.py",
                "[*self.problems, *located]",
                "self.problems or located",
                told="not told at once with the others",
            ),
            Mutant(
                "torch is imported to check a configuration",
                "megatron_kd/checks/vocabularies.py",
                "import math\n",
                "import math\n\nimport torch  # noqa: F401\n",
                told="torch was imported",
            ),
        ),
    ),
)
