"""One message of a conversation: from the spellings of OpenAI, TRL, ShareGPT and others to what templates read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from megatron_kd.config.values import a_type
from megatron_kd.data.raw.documents import checked_text, read_json
from megatron_kd.errors import InputError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_OF = {"human": "user", "gpt": "assistant", "function_call": "assistant"}
_ROLE_OF |= {"observation": "tool", "function_response": "tool"}
_WEIGHTS = ("weight", "train")  # OpenAI's and axolotl's
_SAID = ("content", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """A message.

    Attributes:
        message: as templates read it: a role, content that is text, arguments of tool calls that are objects.
        origin: where in its record it is, for errors.
        learnt: whether it is the assistant's and counts in the loss.
    """

    message: Message
    origin: str
    learnt: bool


def said(role: str, text: Any, origin: str, where: str) -> Turn:
    """A message that is nothing but text.

    Raises:
        InputError: see `read_message`.
    """
    return read_message({"role": role, "content": checked_text(text, origin, where)}, origin, where)


def read_message(item: Any, origin: str, where: str, *, learnt: bool = True) -> Turn:
    """A message as its record spells it.

    Keys that are null are left out, as if they were not there. Keys that are not known here are kept for the template.

    Args:
        item: the message.
        origin: where in its record it is, for errors: `messages[0]`.
        where: its record, for errors.
        learnt: whether an assistant's message counts in the loss unless its weight says otherwise.

    Raises:
        InputError: a message that is malformed, of an unknown role, with content that is not text, with another weight
            than 0 or 1, or an empty answer that would be learnt.
    """
    place = f"{where}: {origin}"
    if not isinstance(item, dict):
        raise InputError(f"{place} is {a_type(item)}, not an object with a role and content")
    given = _as_role_and_content(_without_nulls(item), place)
    weight = _weight(given, place)
    message = {key: value for key, value in given.items() if key not in _WEIGHTS}
    if message.get("tool_calls") == []:  # for some templates, this is a call already
        del message["tool_calls"]
    if "tool_calls" in message:
        message["tool_calls"] = list(_tool_calls(message["tool_calls"], f"{place}.tool_calls"))
    if "content" in message or not message.get("tool_calls"):
        message["content"] = _text(message.get("content"), place)
    learnt = message["role"] == "assistant" and (learnt if weight is None else learnt and weight)
    if learnt and not any(str(message.get(key) or "").strip() for key in _SAID):
        raise InputError(f"{place} is an empty answer, which would be learnt: leave it out or give it weight 0")
    return Turn(message, origin, learnt)


def _as_role_and_content(given: Message, place: str) -> Message:
    """ShareGPT's `from` and `value` as `role` and `content`; LLaMA-Factory's `function_call` as a tool call."""
    spelt = given.get("role", given.get("from"))
    role = _ROLE_OF.get(spelt, spelt) if isinstance(spelt, str) and "role" not in given else spelt
    if role not in ROLES:
        raise InputError(f"{place} has the role {short(role)}, which is none of {', '.join(ROLES)}")
    if "role" in given:
        return given
    others = {key: value for key, value in given.items() if key not in ("from", "value")}
    if spelt == "function_call":
        calls = json_value(given.get("value"))
        return {"role": role, **others, "tool_calls": [calls] if isinstance(calls, dict) else calls}
    return {"role": role, **({"content": given["value"]} if "value" in given else {}), **others}


def _weight(given: Message, place: str) -> bool | None:
    """Whether the record itself says that a message is learnt, or not; None: it does not say."""
    stated = [name for name in _WEIGHTS if name in given]
    for name in stated:
        value = given[name]
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            why = f"{name} {short(value)} is not supported: give 0 (not learnt) or 1"
            raise InputError(f"{place}: {why}")
        if value and given["role"] != "assistant":
            raise InputError(f"{place} has the {name} {short(value)}, and is not the assistant's: give it 0 or none")
    return all(given[name] for name in stated) if stated else None


def _text(content: Any, place: str) -> str:
    """Content as one text; parts are joined by newlines."""
    if not isinstance(content, list):
        return checked_text(content, "its content", place)
    return "\n".join(_part(part, f"{place}.content[{index}]") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise InputError(f"{place} is {a_type(part)}, not an object with type 'text'")
    if part.get("type") != "text":
        raise InputError(f"{place} has the type {short(part.get('type'))}: only parts of text are supported")
    if others := [key for key, value in part.items() if key not in ("type", "text") and value is not None]:
        raise InputError(f"{place} has the key {others[0]!r}, which no template reads: take it out")
    return checked_text(part.get("text"), "its text", place)


def _tool_calls(calls: Any, place: str) -> Iterator[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InputError(f"{place} is {a_type(calls)}, not a list of calls")
    for index, item in enumerate(calls):
        yield _tool_call(item, f"{place}[{index}]")


def _tool_call(item: Any, place: str) -> dict[str, Any]:
    """A call with its arguments as an object: within `function`, as OpenAI writes it, or beside its name."""
    if not isinstance(item, dict):
        raise InputError(f"{place} is {a_type(item)}, not an object with a function")
    call = _without_nulls(item)
    if "function" not in call:
        return _function(call, place)
    return {**call, "function": _function(call["function"], f"{place}.function")}


def _function(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InputError(f"{place} is {a_type(item)}, not an object with a name and arguments")
    function = _without_nulls(item)
    if not checked_text(function.get("name"), "its name", place).strip():
        raise InputError(f"{place}: its name is empty")
    if "arguments" in function:
        # OpenAI writes them as a string of JSON, which templates would encode once more.
        arguments = json_value(function["arguments"])
        if not isinstance(arguments, dict):
            raise InputError(f"{place}: its arguments are not a JSON object: {short(function['arguments'])}")
        function["arguments"] = arguments
    return function


def json_value(value: Any) -> Any:
    """The value of a string of JSON; any other value, and a string that is not JSON, unchanged."""
    try:
        return read_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}
