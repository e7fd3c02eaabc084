"""A problem of a configuration as a value: the fields that cannot be, why not, and the cure.

A check yields problems; `resolve` knows where each value was set and adds it; what a person reads is `str(problem)`:

    train.global_batch_size=7: must be a multiple of 4 (...); set train.global_batch_size=4 or 8 [my.yaml:3]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_kd.config.values import FieldPath, show


@dataclass(frozen=True)
class Origin:
    """Where values were written: a recipe, a flag, the command line, or a file with the lines of its keys."""

    name: str
    lines: Mapping[FieldPath, int] = field(default_factory=dict)

    def at(self, path: FieldPath) -> str:
        """The place of the field at `path`: `my.yaml:7`, or the name alone where lines are not known."""
        line = self.lines.get(path)
        return self.name if line is None else f"{self.name}:{line}"


@dataclass(frozen=True)
class Setting:
    """A field as a problem names it.

    Attributes:
        name: dotted, or a flag or word of the command line that is not a field.
        value: as YAML writes it; None for a name that has no value to be shown.
        origin: where the value was set, such as `my.yaml:3`; empty until that is looked up.
    """

    name: str
    value: str | None = None
    origin: str = ""

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


@dataclass(frozen=True)
class Problem:
    """A value, or a combination of values, that cannot work.

    Attributes:
        fields: with their values; the one to change first.
        why: a clause whose subject is the first field's value.
        cure: an imperative, where `why` does not say it all.
    """

    fields: tuple[Setting, ...]
    why: str
    cure: str = ""

    @classmethod
    def of(cls, root: Any, names: str, why: str, cure: str = "", *, at: str = "") -> Problem:
        """The problem of fields that are shown with their values.

        Args:
            root: the configuration, or the section at `at`.
            names: dotted names below `root`, separated by spaces.
            why, cure: see the class.
            at: the dotted name of `root` and a dot; empty for a whole configuration.
        """
        settings = (Setting(at + name, show(value_of(root, name))) for name in names.split())
        return cls(tuple(settings), why, cure)

    def __str__(self) -> str:
        text = "; ".join(part for part in (self.why, self.cure) if part)
        origins = ", ".join(dict.fromkeys(f.origin for f in self.fields if f.origin))
        names = ", ".join(map(str, self.fields))
        return (f"{names}: " if names else "") + text + (f" [{origins}]" if origins else "")

    def located(self, origins: Mapping[str, str]) -> Problem:
        """This problem with the origins of its fields, by dotted name, where they are known and not in it yet."""
        return replace(self, fields=tuple(replace(f, origin=f.origin or origins.get(f.name, "")) for f in self.fields))


def value_of(root: Any, name: str) -> Any:
    """The value of a field of a configuration or section by its dotted name."""
    for part in name.split("."):
        root = getattr(root, part)
    return root


def divides(divisor: int, value: int) -> bool:
    """Whether `value` is a multiple of `divisor`; true if either is not positive, which `ranges` reports."""
    return divisor < 1 or value < 1 or value % divisor == 0
