"""Chat templates as transformers renders them: the same sandbox, functions and `{% generation %}`.

The marked spans differ in two ways: one that begins the text counts, and one whose place is not known raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateRuntimeError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Spans = list[tuple[int, int]]


def render(template: str, **variables: Any) -> tuple[str, Spans]:
    """The text, and the first and last + 1 character of each part in `{% generation %} ... {% endgeneration %}`.

    Raises:
        TemplateError: a template that cannot be parsed, or refuses its variables.
    """
    compiled = _compiled(template)
    with compiled.environment.recording() as written:  # type: ignore[attr-defined]
        for part in compiled.generate(**variables):
            written.parts.append(part)
    text = "".join(written.parts)
    for start, part in written.generated:
        if text[start : start + len(part)] != part:
            raise TemplateRuntimeError("{% generation %} is inside of a macro, a set block or a filter block")
    return text, [(start, start + len(part)) for start, part in written.generated]


class _Written:
    """The text so far, and the parts in generation blocks with the place where each begins."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.generated: list[tuple[int, str]] = []


class _Generation(Extension):
    """The block `{% generation %} ... {% endgeneration %}`."""

    tags = {"generation"}  # noqa: RUF012

    def __init__(self, environment: ImmutableSandboxedEnvironment) -> None:
        super().__init__(environment)
        self._written = _Written()
        environment.extend(recording=self._recording)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generated"), [], [], body).set_lineno(line)

    def _generated(self, caller: Callable[[], str]) -> str:
        part = caller()
        self._written.generated.append((sum(map(len, self._written.parts)), part))
        return part

    @contextmanager
    def _recording(self) -> Iterator[_Written]:
        self._written = _Written()
        yield self._written


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(template)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter would escape the characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
