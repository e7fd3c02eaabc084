"""A record as a conversation, whichever of the formats in `data.raw.chat_keys` it is written in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_kd.config.values import a_type
from megatron_kd.data.chat.turns import Message, Turn, json_value, read_message, said
from megatron_kd.data.raw.chat_keys import FORMATS_SHOWN, IGNORED, format_of
from megatron_kd.data.raw.documents import checked_text
from megatron_kd.errors import InputError

_NOT_OF_RECORDS = ("messages", "conversations", "tools", "documents", "chat_template", "add_generation_prompt")


@dataclass(frozen=True)
class Conversation:
    """The input of a chat template, and the keys of a record beside it.

    Attributes:
        messages: by role, in order.
        tools: those that may be called.
        documents: of retrieval-augmented generation.
        template_kwargs: other variables for the template.
        not_learnt: the positions of assistant's messages that do not count in the loss.
        origins: where in the record each message is, for errors; empty: in `messages`.
        beside: the record's other keys, with their values.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    not_learnt: frozenset[int] = frozenset()
    origins: tuple[str, ...] = field(default=(), compare=False)
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def learnt(self) -> list[int]:
        """The positions of the messages that count in the loss."""
        assistants = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        return [index for index in assistants if index not in self.not_learnt]

    def origin(self, index: int) -> str:
        """Where in the record a message is."""
        return self.origins[index] if self.origins else f"messages[{index}]"


def conversation(value: dict[str, Any], where: str, ignored: Collection[str] = ()) -> Conversation:
    """The conversation in a record, in any of its formats.

    Args:
        value: the record; a key that is null is as if it were not there.
        where: the record, for errors.
        ignored: keys that the user leaves out, in addition to `IGNORED`.

    Raises:
        InputError: no format's keys, a value of the wrong type, two system prompts, or nothing to learn.
    """
    record = {key: item for key, item in value.items() if item is not None}
    names = format_of(record)
    if names is None:
        raise InputError(f"{where}: {_why_none(record)}")
    take = record.pop
    turns = _with_system(list(_TURNS[names](take, where)), take("system", None), where)
    found = Conversation(
        messages=[turn.message for turn in turns],
        tools=_objects(json_value(take("tools", None) or None), "tools", where),
        documents=_objects(take("documents", None), "documents", where),
        template_kwargs=_template_kwargs(take("chat_template_kwargs", {}), where),
        not_learnt=frozenset(
            index for index, turn in enumerate(turns) if turn.message["role"] == "assistant" and not turn.learnt
        ),
        origins=tuple(turn.origin for turn in turns),
        beside={key: item for key, item in record.items() if key not in IGNORED and key not in ignored},
    )
    if not found.learnt:
        raise InputError(f"{where}: no message is the assistant's and of weight 1, so there is nothing to learn")
    return found


def _why_none(record: dict[str, Any]) -> str:
    if {"chosen", "rejected"} <= record.keys():
        return "preference pairs ('chosen' and 'rejected') are not supported, only 'prompt' and 'completion'"
    keys = f"it has {', '.join(map(repr, list(record)[:8]))}" if record else "it has no keys with a value"
    return f"no conversation at {FORMATS_SHOWN} ({keys})"


def _messages(value: Any, name: str, where: str, *, learnt: bool = True) -> Iterator[Turn]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {name!r} is not a list with messages")
    for index, item in enumerate(value):
        yield read_message(item, f"{name}[{index}]", where, learnt=learnt)


def _prompt_and_completion(take: Callable[..., Any], where: str) -> Iterator[Turn]:
    prompt, completion = take("prompt"), take("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        yield said("user", prompt, "prompt", where)
        yield said("assistant", completion, "completion", where)
    elif isinstance(prompt, list) and isinstance(completion, list):
        yield from _messages(prompt, "prompt", where, learnt=False)
        yield from _messages(completion, "completion", where)
    else:
        kinds = f"'prompt' is {a_type(prompt)}, and 'completion' {a_type(completion)}"
        raise InputError(f"{where}: {kinds}: give text for both, or lists of messages for both")


def _instruction(take: Callable[..., Any], where: str) -> Iterator[Turn]:
    """Alpaca's rows: an instruction, what it applies to, and exchanges before it."""
    history = take("history", [])
    if not isinstance(history, list):
        raise InputError(f"{where}: 'history' is {a_type(history)}, not a list of pairs of texts")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{where}: history[{index}] is not a pair of texts")
        yield said("user", pair[0], f"history[{index}][0]", where)
        yield said("assistant", pair[1], f"history[{index}][1]", where)
    asked = [checked_text(take(name, ""), repr(name), where) for name in ("instruction", "input")]
    yield said("user", "\n".join(text for text in asked if text), "instruction", where)
    yield said("assistant", take("output"), "output", where)


_TURNS: dict[tuple[str, ...], Callable[[Callable[..., Any], str], Iterator[Turn]]] = {
    ("messages",): lambda take, where: _messages(take("messages"), "messages", where),
    ("conversations",): lambda take, where: _messages(take("conversations"), "conversations", where),
    ("prompt", "completion"): _prompt_and_completion,
    ("instruction", "output"): _instruction,
}


def _with_system(turns: list[Turn], system: Any, where: str) -> list[Turn]:
    """The system prompt beside the messages, as LLaMA-Factory has it, as the first of them."""
    if not system:
        return turns
    first = said("system", system, "system", where)
    if turns[0].message["role"] != "system":
        return [first, *turns]
    if turns[0].message["content"] != first.message["content"]:
        raise InputError(f"{where}: 'system' is another system prompt than that of {turns[0].origin}: keep one")
    return turns


def _objects(value: Any, name: str, where: str) -> list[dict[str, Any]] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise InputError(f"{where}: {name!r} is not a list of objects")
    return value or None


def _template_kwargs(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: 'chat_template_kwargs' is {a_type(value)}, not an object")
    if taken := [name for name in value if name in _NOT_OF_RECORDS]:
        raise InputError(f"{where}: chat_template_kwargs has {taken[0]!r}, which the record gives at a key of its own")
    return value
