"""The command line of a run: `--config-file FILE`, flags and Hydra-style overrides, turned into edits.

    a.b=1          set; +a.b=1 and ++a.b=1 mean the same, since all keys are known
    ~a.b           back to the default of the field's class (of every field, if a.b is a section)
    a.b=[1,x,null] lists; {k: v} mappings, merged into a section; 'a b' quoted text
    model.kd_config=FILE.yaml   the settings of the distillation losses from a file
    --batch_size 2 the flags of `flags.FLAGS`

Files are applied in the order given, then flags and overrides in theirs, so the command line wins over files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, QuotedString, Sweep
from hydra.errors import HydraException

from megatron_kd.config.document import Document, read_document
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.edits import RESET, Edit, file_edits
from megatron_kd.resolve.flags import (
    COMMAND_LINE,
    CONFIG_FILE,
    contradictions,
    flag_edits,
    is_flag,
    joined,
    unknown_flag,
)


@dataclass
class Arguments:
    """The edits that a command line requests, and the problems found in it."""

    edits: list[Edit] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read a run's command line.

    Args:
        argv: without the program's name.

    Returns:
        the edits in the order they apply, and a problem for each argument or file that could not be read.
    """
    files, words, problems = split_arguments(argv)
    result = Arguments(problems=problems)
    for name in files:
        document = _read(name, result.problems)
        if document is not None:
            edits, wrong = file_edits(document)
            result.edits += edits
            result.problems += wrong
    by_flags: list[Edit] = []
    for word in words:
        if is_flag(word):
            edits, problem = flag_edits(word)
            by_flags += edits
        else:
            edit, problem = parse_override(word)
            edits = [] if edit is None else [edit]
        result.edits += edits
        if problem is not None:
            result.problems.append(problem)
    result.problems += contradictions(by_flags)
    return result


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str], list[Problem]]:
    """Separate `argv` into config files, flags and overrides, and a problem for each argument that is none of these.

    A flag and its value are one word, as `flags.joined` makes it.
    """
    files: list[str] = []
    words: list[str] = []
    problems: list[Problem] = []
    after_unknown = False
    for word in joined(argv):
        name, _, value = word.partition("=")
        value_of_unknown = after_unknown and "=" not in word and not word.startswith(("-", "~", "+"))
        after_unknown = False
        if value_of_unknown:
            continue  # reported with its flag
        if name == CONFIG_FILE and value:
            files.append(value)
        elif name == CONFIG_FILE:
            problems.append(_problem(CONFIG_FILE, "names no file", f"write {CONFIG_FILE} FILE.yaml"))
        elif word.startswith("-") and not is_flag(word):
            problems.append(unknown_flag(word))
            after_unknown = "=" not in word
        else:
            words.append(word)
    return files, words, problems


def parse_override(text: str) -> tuple[Edit | None, Problem | None]:
    """Read one override with Hydra's own grammar.

    Returns:
        the edit and None, or None and what is wrong.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        refused = _refused(override)
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        refused = _not_grammatical(text, error)
    if refused is not None:
        return None, _problem(text if len(text) <= 120 else f"{text[:117]}...", *refused)
    path = tuple(override.key_or_group.split("."))
    value = RESET if override.type is OverrideType.DEL else _plain(override.value())
    return Edit(path, value, COMMAND_LINE), None


def _problem(word: str, why: str, cure: str) -> Problem:
    return Problem((Setting(word, origin=COMMAND_LINE.name),), why, cure)


def _refused(override: Override) -> tuple[str, str] | None:
    """Why an override that Hydra's grammar accepts has no meaning here, and the cure; None where it has one."""
    if not override.key_or_group:
        return "names no field", "write section.field=value"
    if override.package is not None:
        return "Hydra's packages (@) have no meaning here", "write section.field=value"
    if override.type is OverrideType.DEL:
        return None if override.value() is None else ("~ takes no value", f"write ~{override.key_or_group}")
    if _holds_sweep(override.value()):
        key = override.key_or_group
        cure = f"write a list as {key}=[a,b], and text with commas as \"{key}='a,b'\""
        return "is a sweep over several values, but a run has one", cure
    return None


def _holds_sweep(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_sweep, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Sweep | Glob)


def _plain(value: Any) -> Any:
    """Hydra's values as plain data: quoted text loses its quotes."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if isinstance(value, QuotedString) else value


def _not_grammatical(text: str, error: Exception) -> tuple[str, str]:
    if "=" not in text:
        return "is not an override", "write section.field=value, or ~section.field for the default"
    key = text.split("=")[0]
    what = str(error).splitlines()[0].split(" expecting {")[0][:120]
    return f"cannot be read ({what})", f"put text with special characters in quotes: \"{key}='...'\""


def _read(name: str, problems: list[Problem]) -> Document | None:
    try:
        return read_document(name)
    except ConfigError as error:
        problems += [Problem((), f"{CONFIG_FILE} {line}") for line in error.lines]
        return None
