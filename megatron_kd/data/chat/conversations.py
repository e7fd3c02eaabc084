"""Conversations to token ids by the tokenizer's chat template, and which of the ids the assistant wrote.

A conversation is `{"messages": [{"role": "user", "content": "..."}, ...]}`, or `{"conversations": [{"from": "human",
"value": "..."}, ...]}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from megatron_kd.data.chat.rendering import render
from megatron_kd.data.raw.chunks import Record
from megatron_kd.data.raw.documents import Document, checked_text, record_object
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_OF = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
_ROLE_OF |= {"tool": "tool", "observation": "tool", "function_response": "tool"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK = "mark what the assistant writes with {% generation %} ... {% endgeneration %} in the template (--chat-template)"

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The messages, by role, and the tools that they may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class ChatTemplate:
    """A tokenizer's chat template, or one that is given in its place.

    Raises:
        InputError: no template, or one that is not a template.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.text = _template_of(tokenizer) if template is None else template
        self.marks_assistant = _GENERATION.search(self.text) is not None
        self._check()

    def encode(self, conversation: Conversation, where: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and whether each is the assistant's.

        A template that marks what the assistant writes, with `{% generation %}`, is taken at its word: a token is the
        assistant's if any of its characters is. Of any other template, all that it writes for an assistant's message
        after the prompt that asks for one is the assistant's; what comes before must then be rendered, and tokenised,
        in the same way as when it stands alone, as it does when the model is asked.

        Raises:
            InputError: a conversation that the template refuses, or a template that cannot be taken apart like that.
        """
        encode = self._marked if self.marks_assistant else self._by_prefixes
        ids, mask = encode(conversation, where)
        if not any(mask):
            raise InputError(f"{where}: the chat template writes nothing for the assistant: {_MARK}")
        return ids, mask

    def _marked(self, conversation: Conversation, where: str) -> tuple[list[int], list[bool]]:
        text, spans = self._render(conversation.messages, conversation.tools, where)
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        return ids, [any(start < last and first < stop for first, last in spans) for start, stop in offsets]

    def _by_prefixes(self, conversation: Conversation, where: str) -> tuple[list[int], list[bool]]:
        messages, tools = conversation.messages, conversation.tools
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        texts = [self._render(messages, tools, where)[0]]
        for turn in turns:
            texts.append(self._render(messages[:turn], tools, where, prompt=True)[0])
            texts.append(self._render(messages[: turn + 1], tools, where)[0])
        whole, *prefixes = self.tokenizer.encode_batch(texts)
        mask = [False] * len(whole)
        for turn, prompt, answered in zip(turns, prefixes[0::2], prefixes[1::2], strict=True):
            for prefix, what in ((prompt, "up to the prompt for"), (answered, "up to the end of")):
                if whole[: len(prefix)] != prefix:
                    raise InputError(
                        f"{where}: with this chat template, a conversation {what} message {turn} does not begin with "
                        f"the tokens that it has alone, so the assistant's cannot be distinguished: {_MARK}"
                    )
            mask[len(prompt) : len(answered)] = [True] * (len(answered) - len(prompt))
        return whole, mask

    def _render(
        self, messages: list[Message], tools: Any, where: str, *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans of characters marked in it."""
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            return render(self.text, **{**variables, **self.tokenizer.special_tokens})
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"{where}: the chat template refuses this conversation: {error}") from error

    def _check(self) -> None:
        example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            self._render(example, None, "an example")
        except InputError as error:  # an example may be refused; only a syntax error matters
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise InputError(f"the chat template is not a Jinja template: {error.__cause__}") from error


@dataclass(frozen=True)
class ChatReader:
    """A `Reader` of conversations."""

    template: ChatTemplate

    def read(self, record: Record) -> Document | None:
        """Tokenise one conversation; None for a blank line.

        Raises:
            InputError: see `conversation` and `ChatTemplate.encode`.
        """
        value = record_object(record)
        if value is None:
            return None
        found = conversation(value, record.where)
        ids, mask = self.template.encode(found, record.where)
        text_bytes = sum(len((message.get("content") or "").encode()) for message in found.messages)
        return Document(ids, mask, text_bytes)

    def documents(self, contents: Sequence[Document | None]) -> list[Document]:
        """See `Reader`."""
        return [document for document in contents if document is not None]


def conversation(value: dict[str, Any], where: str) -> Conversation:
    """The conversation in a record, in either spelling.

    Raises:
        InputError: no messages, one that is malformed or of an unknown role, or none by the assistant.
    """
    name = next((name for name in ("messages", "conversations") if value.get(name) is not None), None)
    if name is None:
        keys = ", ".join(map(repr, list(value)[:8])) or "none"
        raise InputError(f"{where}: no 'messages' and no 'conversations' (it has {keys})")
    if not isinstance(value[name], list) or not value[name]:
        raise InputError(f"{where}: {name!r} is not a list with messages")
    messages = [_message(item, f"{where}: {name}[{index}]") for index, item in enumerate(value[name])]
    if all(message["role"] != "assistant" for message in messages):
        raise InputError(f"{where}: no message is the assistant's, so there is nothing to learn")
    tools = value.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}: 'tools' is not a list of objects")
    return Conversation(messages, tools or None)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f"{where} is a {type(item).__name__}, not an object with a role and content")
    message = {key: value for key, value in item.items() if value is not None}  # tables fill up with null
    if "from" in message and "role" not in message:
        message = {"role": _ROLE_OF.get(message["from"], message["from"]), "content": message.get("value")}
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {role!r}, which is none of {', '.join(ROLES)}")
    if not (message.get("tool_calls") and message.get("content") is None):
        checked_text(message.get("content"), "its content", where)
    return message


def read_template(path: str | Path) -> str:
    """The text of a template's file.

    Raises:
        InputError: a file that cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"--chat-template {path}: there is no such file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--chat-template {path}: cannot be read ({error})") from error


def _template_of(tokenizer: HuggingFaceTokenizer) -> str:
    template = tokenizer.chat_template()
    if template is None:  # or several of which none is the default
        raise InputError(
            f"tokenizer {str(tokenizer.source)!r} has no chat template: put one in chat_template.jinja beside its "
            "tokenizer.json, or name a file with --chat-template"
        )
    return template
