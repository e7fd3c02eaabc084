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
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.edits import RESET, Edit, Source, file_edits
from megatron_kd.resolve.flags import CONFIG_FILE, contradictions, flag_edits, is_flag, joined, unknown_flag

COMMAND_LINE = Source("command line")


@dataclass
class Arguments:
    """What a command line asks for, and what is wrong with it."""

    edits: list[Edit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read a run's command line.

    Args:
        argv: without the program's name.

    Returns:
        the edits in the order they apply, and one line for each argument or file that could not be read.
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


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Part `argv` into config files, flags and overrides, and one line for each argument that is none of these.

    A flag and its value are one word, as `flags.joined` makes it.
    """
    files, words, problems = [], [], []
    after_unknown = False
    for word in joined(argv):
        name, _, value = word.partition("=")
        value_of_unknown = after_unknown and "=" not in word and not word.startswith(("-", "~", "+"))
        after_unknown = False
        if value_of_unknown:
            continue  # told with its flag
        if name == CONFIG_FILE and value:
            files.append(value)
        elif name == CONFIG_FILE:
            problems.append(f"{CONFIG_FILE}: names no file; write {CONFIG_FILE} FILE.yaml [command line]")
        elif word.startswith("-") and not is_flag(word):
            problems.append(unknown_flag(word))
            after_unknown = "=" not in word
        else:
            words.append(word)
    return files, words, problems


def parse_override(text: str) -> tuple[Edit | None, str | None]:
    """Read one override with Hydra's own grammar.

    Returns:
        the edit and None, or None and what is wrong, with its cure.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        problem = _refused(override)
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        problem = _grammar_problem(text, error)
    if problem is not None:
        shown = text if len(text) <= 120 else f"{text[:117]}..."
        return None, f"{shown}: {problem}{COMMAND_LINE.at(())}"
    path = tuple(override.key_or_group.split("."))
    value = RESET if override.type is OverrideType.DEL else _plain(override.value())
    return Edit(path, value, COMMAND_LINE), None


def _refused(override: Override) -> str | None:
    """Why an override that Hydra's grammar accepts has no meaning here, or None."""
    if not override.key_or_group:
        return "names no field; write section.field=value"
    if override.package is not None:
        return "Hydra's packages (@) have no meaning here; write section.field=value"
    if override.type is OverrideType.DEL:
        return None if override.value() is None else f"~ takes no value; write ~{override.key_or_group}"
    if _holds_sweep(override.value()):
        return (
            "is a sweep over several values, but a run has one; a list is written "
            f"{override.key_or_group}=[a,b], and text with commas \"{override.key_or_group}='a,b'\""
        )
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


def _grammar_problem(text: str, error: Exception) -> str:
    if "=" not in text:
        return "is no override; write section.field=value, or ~section.field for the default"
    key = text.split("=")[0]
    what = str(error).splitlines()[0].split(" expecting {")[0][:120]
    return f"cannot be read ({what}); put text with special characters in quotes: \"{key}='...'\""


def _read(name: str, problems: list[str]) -> Document | None:
    try:
        return read_document(name)
    except ConfigError as error:
        problems += [f"--config-file {problem}" for problem in error.problems]
        return None
