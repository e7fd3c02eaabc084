"""The command line of a run: `--config-file FILE`, flags and Hydra-style overrides, turned into edits.

    a.b=1          set; +a.b=1 and ++a.b=1 mean the same, since all keys are known
    ~a.b           back to the default of the field's class (of every field, if a.b is a section)
    a.b=[1,x,null] lists; {k: v} mappings, merged into a section; 'a b' quoted text
    a.b=x=1#é      text, word for word, whatever its characters but quotes, brackets, commas and backslashes
    model.kd_config=FILE.yaml   the settings of the distillation losses from a file
    --batch_size 2 the flags of `flags.FLAGS`

Files are applied in the order given, then flags and overrides in theirs, so the command line wins over files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.document import Document, read_document
from megatron_kd.config.gpt_distillation import GPTDistillationProvider
from megatron_kd.config.problem import Problem, Setting
from megatron_kd.config.schema import schema_of
from megatron_kd.errors import ConfigError
from megatron_kd.resolve.edits import RESET, Edit, file_edits
from megatron_kd.resolve.flags import (
    COMMAND_LINE,
    CONFIG_FILE,
    contradictions,
    flag_edits,
    is_flag,
    joined,
)
from megatron_kd.resolve.unknown_flags import blend, takes_several, unknown_flag

# Hydra's grammar wants many characters of paths in quotes. Where only one reading is possible, that is not needed.
_PLAIN_TEXT = re.compile(r"""\+{0,2}(?P<key>[A-Za-z_]\w*(\.\w+)*)=\s*(?P<text>[^\s='"(){}\[\],\\][^'"(){}\[\],\\]*)""")
# Shares of the data are numbers with commas, which in Hydra's grammar is a sweep.
_SHARES = re.compile(r"\+{0,2}(?P<key>dataset\.split)=\s*(?P<text>[\d.]+(\s*,\s*[\d.]+)+)")
_SHOWN = 120  # characters of an argument that a message shows


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
    waiting = joined(argv)[::-1]
    while waiting:
        word = waiting.pop()
        name, _, value = word.partition("=")
        if name == CONFIG_FILE and value:
            files.append(value)
        elif name == CONFIG_FILE:
            problems.append(_problem(CONFIG_FILE, "names no file", f"write {CONFIG_FILE} FILE.yaml"))
        elif word.startswith("-") and not is_flag(word):
            values = [] if "=" in word else _values(waiting, several=takes_several(word))
            problems.append(unknown_flag(word, values))
        elif name == "--data_path" and (more := _values(waiting, several=True)):
            problems.append(blend([value, *more]))
        else:
            words.append(word)
    return files, words, problems


def _values(waiting: list[str], *, several: bool) -> list[str]:
    """Take from `waiting`, whose last word comes first, what may be the values of the option before."""
    values: list[str] = []
    while waiting and _may_be_value(waiting[-1]) and (several or not values):
        values.append(waiting.pop())
    return values


def _may_be_value(word: str) -> bool:
    """Whether a word may be the value of the unknown flag before it, which is then reported with it."""
    return "=" not in word and not word.startswith(("-", "~", "+"))


def parse_override(text: str) -> tuple[Edit | None, Problem | None]:
    """Read one override with Hydra's own grammar.

    Returns:
        the edit and None, or None and what is wrong.
    """
    if shares := _SHARES.fullmatch(text.rstrip()):
        return _as_text(shares), None
    try:
        override = OverridesParser.create().parse_override(text)
        refused = _refused(override, text)
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        if plain := _PLAIN_TEXT.fullmatch(text):
            return _as_text(plain), None
        refused = _not_grammatical(text, error)
    if refused is not None:
        return None, _problem(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...", *refused)
    path = tuple(override.key_or_group.split("."))
    value = RESET if override.type is OverrideType.DEL else _plain(override.value())
    return Edit(path, value, COMMAND_LINE), None


def _as_text(found: re.Match[str]) -> Edit:
    return Edit(tuple(found["key"].split(".")), found["text"].rstrip(), COMMAND_LINE)


def _problem(word: str, why: str, cure: str) -> Problem:
    return Problem((Setting(word, origin=COMMAND_LINE.name),), why, cure)


def _refused(override: Override, text: str) -> tuple[str, str] | None:
    """Why an override that Hydra's grammar accepts has no meaning here, and the cure; None where it has one."""
    if not override.key_or_group:
        return "names no field", "write section.field=value"
    if override.package is not None:
        return "Hydra's packages (@) have no meaning here", "write section.field=value"
    if override.type is OverrideType.DEL:
        return None if override.value() is None else ("~ takes no value", f"write ~{override.key_or_group}")
    if _holds_sweep(override.value()):
        list_ = f"a list is {override.key_or_group}=[a,b]; for text with commas, "
        cure = f"{'' if _is_text(override.key_or_group) else list_}write {_quoted(text)}"
        return "is a sweep over several values, but a run has one", cure
    return None


def _is_text(name: str) -> bool:
    """Whether the field called `name` holds text, and never a list."""
    leaves = schema_of(ConfigContainer(model=GPTDistillationProvider())).leaves
    return leaves.get(tuple(name.split("."))) in (str, str | None)


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
    what = str(error).splitlines()[0].split(" expecting {")[0][:120]
    return f"cannot be read ({what})", f"put text with special characters in quotes: write {_quoted(text)}"


def _quoted(text: str) -> str:
    """An override with its value as one text, in quotes for Hydra's grammar and for the shell."""
    key, _, value = text.partition("=")
    if len(text) > _SHOWN or not value.isprintable():
        return f"\"{key}='...'\""
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def _read(name: str, problems: list[Problem]) -> Document | None:
    try:
        return read_document(name)
    except ConfigError as error:
        problems += [Problem((), f"{CONFIG_FILE} {line}") for line in error.lines]
        return None
