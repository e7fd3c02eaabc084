"""Strict YAML: safe, without surprises, and with the line of every key.

Only plain data is read. `1e-3` is a number; `yes`, `off`, `010` and `1:30` are text, as in YAML 1.2 and on the
command line (YAML 1.1 makes them true, false, 8 and 90); a key given twice is an error, not a silent winner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_kd.config.problem import Origin
from megatron_kd.config.values import FieldPath
from megatron_kd.errors import ConfigError

_TAG = "tag:yaml.org,2002:"


class _Resolver(yaml.resolver.BaseResolver):
    """Which unquoted scalars are not text. Shared by reading and writing, so that both agree."""


_Resolver.add_implicit_resolver(f"{_TAG}null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Resolver.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Resolver.add_implicit_resolver(f"{_TAG}int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Resolver.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|[-+]?\.(inf|nan)$"),
    list("-+.0123456789"),
)


class _Loader(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, _Resolver):
    """Reads text into nodes; `_Reading` makes values of them."""

    def __init__(self, text: str):
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        _Resolver.__init__(self)


class _Dumper(yaml.emitter.Emitter, yaml.serializer.Serializer, yaml.representer.SafeRepresenter, _Resolver):
    """Writes plain data."""

    def __init__(self, stream: Any, **options: Any):
        emitter = {key: options.get(key) for key in ("width", "allow_unicode")}
        yaml.emitter.Emitter.__init__(self, stream, **emitter)
        yaml.serializer.Serializer.__init__(self)
        yaml.representer.SafeRepresenter.__init__(self, default_flow_style=False, sort_keys=False)
        _Resolver.__init__(self)

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out in full: a configuration is read by people."""
        return True


def _list_on_one_line(dumper: yaml.representer.BaseRepresenter, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=True)


_Dumper.add_representer(list, _list_on_one_line)


@dataclass(frozen=True)
class Document:
    """A file's top-level mapping and the line of each of its keys, by path."""

    name: str
    data: dict[str, Any]
    lines: Mapping[FieldPath, int]

    def origin(self, at: FieldPath = ()) -> Origin:
        """Where the fields of a configuration are in this file, whose top level is the section at `at`."""
        return Origin(self.name, {(*at, *path): line for path, line in self.lines.items()})


def write_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text that `read_document` reads back equal."""
    return yaml.dump(dict(data), Dumper=_Dumper, width=1000, allow_unicode=True)


def read_document(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: it cannot be read, is not YAML, is empty, is not a mapping, repeats keys, or holds anything but
            plain data; every line names the file and, where there is one, the line.
    """
    name = str(path)
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        node = _compose(text)
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{name}: is not UTF-8 text: {error.reason} at byte {error.start}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(name, error)]) from error
    if node is None:
        raise ConfigError([f"{name}: is empty; give it at least one key, or leave it out"])
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([f"{name}:{_line(node)}: must be a mapping (key: value) at the top level"])
    reading = _Reading(name)
    data = reading.value(node, ())
    if reading.problems:
        raise ConfigError(reading.problems)
    return Document(name, data, reading.lines)


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    return loader.get_single_node()


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _syntax_problem(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{where}: is not valid YAML: {what}"


class _Reading:
    """Turns nodes into plain values, noting the lines of keys and everything wrong on the way."""

    def __init__(self, name: str):
        self.name = name
        self.lines: dict[FieldPath, int] = {}
        self.problems: list[str] = []
        self._open: list[yaml.Node] = []  # the nodes around the one being read: an alias to one never ends

    def value(self, node: yaml.Node, path: FieldPath) -> Any:
        """The plain value of `node`, which stands at `path`; None in place of what is refused."""
        if any(node is outer for outer in self._open):
            return self._refuse(node, "an alias (*name) to a value that contains it")
        self._open.append(node)
        try:
            if node.tag == f"{_TAG}map" and isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if node.tag == f"{_TAG}seq" and isinstance(node, yaml.SequenceNode):
                return [self.value(item, path) for item in node.value]
            return self._scalar(node)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, "a key that is not text")
                continue
            here = (*path, key_node.value)
            if key_node.value in result:
                first = self.lines[here]
                self._refuse(key_node, f"{'.'.join(here)} given twice, first on line {first}; keep one of the two")
                continue
            self.lines[here] = _line(key_node)
            result[key_node.value] = self.value(value_node, here)
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if not isinstance(node, yaml.ScalarNode) or kind not in ("null", "bool", "int", "float", "str"):
            return self._refuse(node, f"a value tagged {node.tag}; only plain data is read")
        try:
            return _SCALARS[kind](text)
        except ValueError:  # a tag written by hand: `!!int x`
            return self._refuse(node, f"{text!r} tagged as {kind}")

    def _refuse(self, node: yaml.Node, what: str) -> None:
        self.problems.append(f"{self.name}:{_line(node)}: {what}")


def _float(text: str) -> float:
    return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text.replace("_", "")),
    "float": _float,
    "str": str,
}
