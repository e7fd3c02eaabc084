"""Configurations that cannot be meant, or cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.resolve import merge
from megatron_kd.config.schema import dotted, schema_of
from megatron_kd.distillation.provider import GPTDistillationProvider
from tests.config.slips import as_file, slip, suggests
from tests.reliability.refusals import refused
from tests.reliability.row import Draw, Facts, Mutant, Row

SLIPS, TYPO_DRAWS = 3, 10  # of each key; over which the keys are dealt out


def keys() -> list[str]:
    """All fields of a distillation."""
    return [dotted(path) for path in schema_of(_defaults()).leaves]


def typos(draw: Draw) -> Facts:
    """Slips in a tenth of the keys, each alone, as an override and in a file."""
    drawn, other = slips(draw, keys()[draw.number :: TYPO_DRAWS], SLIPS)
    right = 0
    for key, wrong in drawn:
        for words in forms(wrong, draw.folder):
            config, lines, origins = merge(_defaults(), words)
            assert lines and not origins and config == _defaults(), f"{wrong} was not refused, for {key}"
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
    yield ["--config-file", str(as_file(folder / "slip.yaml", wrong, 1))]


def typos_through_torchrun(draw: Draw) -> list[Facts]:
    """Twenty slips at a time, half of them in files."""
    facts: list[Facts] = []
    for number in range(5):
        folder = draw.folder / str(number)
        drawn, other = slips(draw, draw.random.sample(keys(), 20), 1)
        words = [f"{wrong}=1" for _, wrong in drawn[::2]]
        for index, (_, wrong) in enumerate(drawn[1::2]):
            words += ["--config-file", str(as_file(draw.folder / f"{number}_{index}.yaml", wrong, 1))]
        lines = refused(folder, words)
        assert len(lines) == len(drawn), f"{len(lines)} errors were told of {len(drawn)}: {lines}"
        in_order = [*drawn[1::2], *drawn[::2]]  # files first
        right = sum(suggests(line, wrong, key) for line, (key, wrong) in zip(lines, in_order, strict=True))
        facts.append({"refused": len(lines), "right": right, "other": other})
    return facts


def _suggestions(facts: Sequence[Facts]) -> str:
    refusals, right, other = (sum(fact[name] for fact in facts) for name in ("refused", "right", "other"))
    assert right >= 0.95 * refusals, f"only {right} of {refusals} errors suggest the right key"
    return f"{refusals} of {refusals} refused, {right} with the right key; {other} slips made another key"


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
                "megatron_kd/config/edits.py",
                "        problems.append(unknown_key(path, schema) + source.at(path))\n",
                "        pass\n",
                told="was not refused",
            ),
            Mutant(
                "where a key was written is not looked at",
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
)
