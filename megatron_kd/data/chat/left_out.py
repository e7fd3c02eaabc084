"""Values of a conversation that its text lacks: those that a chat template leaves out, by where they are.

Templates leave out without a word what they were not written for: tools, calls, reasoning, names, whole messages. Two
signs give a value away. Its own words must be in the text, white space aside, as they are or as JSON or Python writes
them. And where a mark is added to the value, the text with the marks must have it: a value that another one repeats
may be left out, and its words are still in the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from reprlib import repr as short
from typing import Any

from megatron_kd.data.chat.conversation import Conversation
from megatron_kd.data.chat.turns import Message
from megatron_kd.data.raw.chat_keys import IGNORED
from megatron_kd.errors import InputError

Render = Callable[[Conversation], str]

_NAMES = ("name", "description", "title", "enum")  # what a tool says about itself; the rest is the schema's grammar
_SHOWN = 4  # of the values left out


def values_left_out(conversation: Conversation, text: str, render: Render, ignored: Collection[str]) -> list[str]:
    """The values that the template leaves out of a conversation, each as `messages[1].name ('Alice')`.

    Args:
        text: of the conversation.
        render: gives the text of a conversation; it may raise an InputError for one with marks.
        ignored: keys of messages and calls that may be left out, in addition to `IGNORED`.
    """
    marks = _Marks(IGNORED | set(ignored))
    marked = marks.conversation(conversation)
    try:
        marked_text = render(marked)
    except InputError:  # the template accepts certain values only: compare words alone
        marked_text = None
    words = _Words(text)
    found = [
        f"{path} ({short(value)})"
        for path, value, mark in marks.values
        if value not in words or not (marked_text is None or mark is None or mark in marked_text)
    ]
    found += (f"{path} as JSON, but as Python" for path, value in marks.arguments if words.have_python(value))
    found += (path for path, without in _unmarked(conversation, marks.unchecked) if render(without) == text)
    return found + [f"{key!r} ({short(value)})" for key, value in _beside(conversation)]


def shown(left_out: list[str]) -> str:
    """The values left out, as an error says it."""
    more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
    return (
        f"not in the text that the chat template writes: {', '.join(left_out[:_SHOWN])}{more}: take it out of the "
        "record, allow it by --ignore-keys, or give a template that writes it"
    )


class _Words:
    """The characters of a text without white space, which templates trim and add."""

    def __init__(self, text: str) -> None:
        self._text = _squeezed(text)

    def __contains__(self, value: Any) -> bool:
        return any(_squeezed(spelt) in self._text for spelt in _spellings(value))

    def have_python(self, value: dict[str, Any]) -> bool:
        """Whether an object is there as Python writes it, by a template that takes it for a text, and not as JSON."""
        python, *json_ = (_squeezed(text) for text in (str(value), *_json(value)))
        return bool(value) and python in self._text and not any(text in self._text for text in json_)


def _spellings(value: Any) -> Iterator[str]:
    """As templates write a value: as it is, as JSON, or as Python."""
    if isinstance(value, str):
        yield value
        yield from (text[1:-1] for text in (*_json(value), repr(value)))
    else:
        yield from (*_json(value), str(value))


def _json(value: Any) -> tuple[str, str]:
    return json.dumps(value, ensure_ascii=False, default=str), json.dumps(value, default=str)


@dataclass
class _Marks:
    """Makes the copy of a conversation that has a mark at the end of each text.

    Attributes:
        unchecked: keys that may be left out.
        values: where each value is, the value, and its mark; None: a value that is not marked.
        arguments: of calls, and where they are.
    """

    unchecked: frozenset[str] | set[str]
    values: list[tuple[str, Any, str | None]] = field(default_factory=list)
    arguments: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def conversation(self, conversation: Conversation) -> Conversation:
        messages = [
            {key: self._of_message(message, key, f"{conversation.origin(index)}.{key}") for key in message}
            for index, message in enumerate(conversation.messages)
        ]
        tools, documents = conversation.tools, conversation.documents
        return replace(
            conversation,
            messages=messages,
            tools=tools if "tools" in self.unchecked else self._tool(tools, "tools"),
            documents=documents if "documents" in self.unchecked else self._text(documents, "documents"),
        )

    def _of_message(self, message: Message, key: str, path: str) -> Any:
        value = message[key]
        if key == "role" or key in self.unchecked:
            return value
        if key == "name" and message["role"] == "tool":  # the call has it
            self.values.append((path, value, None))
            return value
        if key != "tool_calls":
            return self._text(value, path)
        return [
            {name: self._of_call(name, part, f"{path}[{index}].{name}") for name, part in call.items()}
            for index, call in enumerate(value)
        ]

    def _of_call(self, key: str, value: Any, path: str) -> Any:
        if key in self.unchecked:
            return value
        if key == "function":
            return {name: self._of_call(name, part, f"{path}.{name}") for name, part in value.items()}
        if key != "arguments":
            return self._text(value, path)
        self.arguments.append((path, value))
        return self._arguments(value, path)

    def _arguments(self, value: Any, path: str) -> Any:
        """All that is in the arguments of a call: their names, and numbers too."""
        if isinstance(value, dict):
            return {self._marked(key, path): self._arguments(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._arguments(item, f"{path}[{index}]") for index, item in enumerate(value)]
        if not isinstance(value, str):
            self.values.append((path, value, None))
        return self._text(value, path)

    def _text(self, value: Any, path: str) -> Any:
        """The texts in a value, at whatever depth."""
        if isinstance(value, dict):
            return {key: self._text(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self._text(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return self._marked(value, path) if isinstance(value, str) else value

    def _tool(self, value: Any, path: str) -> Any:
        """Names and descriptions of a tool and its parameters; templates spell the rest in ways of their own."""
        if isinstance(value, list):
            return [self._tool(item, f"{path}[{index}]") for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if isinstance(properties := value.get("properties"), dict):
            self.values += ((f"{path}.properties", name, None) for name in properties)
        return {
            key: self._text(item, f"{path}.{key}")
            if key in _NAMES and not isinstance(item, dict)
            else self._tool(item, f"{path}.{key}")
            for key, item in value.items()
        }

    def _marked(self, value: str, path: str) -> str:
        if not value.strip():
            return value
        mark = f"Zq{len(self.values)}qZ"
        self.values.append((path, value, mark))
        return value + mark


def _unmarked(conversation: Conversation, unchecked: Collection[str]) -> Iterator[tuple[str, Conversation]]:
    """Where messages have keys without any text, such as switches, and the conversation without each."""
    for index, message in enumerate(conversation.messages):
        for key in message:
            if key not in unchecked and key != "tool_calls" and _says(message[key]) and not any(_texts(message[key])):
                without = {name: value for name, value in message.items() if name != key}
                messages = [*conversation.messages[:index], without, *conversation.messages[index + 1 :]]
                yield f"{conversation.origin(index)}.{key}", replace(conversation, messages=messages)


def _says(value: Any) -> bool:
    """Whether there is anything in a value: not in texts, lists and objects that are empty."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, (dict, list)):
        return any(map(_says, _items(value)))
    return value is not None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for item in _items(value):
            yield from _texts(item)
    elif isinstance(value, str):
        yield value.strip()


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _beside(conversation: Conversation) -> Iterator[tuple[str, Any]]:
    """The record's other keys that say more than a message says again."""
    contents = {_squeezed(message.get("content", "")) for message in conversation.messages}
    for key, value in conversation.beside.items():
        if _says(value) and not (isinstance(value, str) and _squeezed(value) in contents):
            yield key, value


def _squeezed(text: str) -> str:
    return "".join(text.split())
