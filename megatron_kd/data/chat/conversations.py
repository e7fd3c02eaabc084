"""Conversations to token ids by the tokenizer's chat template, and which of the ids the assistant wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError

from megatron_kd.data.chat.conversation import Conversation, conversation
from megatron_kd.data.chat.left_out import shown, values_left_out
from megatron_kd.data.chat.rendering import Spans, render
from megatron_kd.data.raw.chunks import Record
from megatron_kd.data.raw.documents import Document, checked_text, record_object
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK = "mark what the assistant writes with {% generation %} ... {% endgeneration %} in the template (--chat-template)"


class ChatTemplate:
    """A tokenizer's chat templates, or one that is given in their place.

    A tokenizer may have several by name. As in `transformers`, `tool_use` is for conversations with tools where there
    is one, and `default` for all others.

    Args:
        template: in place of the tokenizer's.
        ignored: keys of a record, a message or a tool call that a template may leave out.

    Raises:
        InputError: no template, or one that is not a template.
    """

    def __init__(
        self, tokenizer: HuggingFaceTokenizer, template: str | None = None, ignored: Collection[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.ignored = frozenset(ignored)
        self._named = _templates_of(tokenizer) if template is None else {"default": template}
        self._check()

    @property
    def text(self) -> str:
        """The template or, where there are several, all of them by name as JSON."""
        return self._named["default"] if len(self._named) == 1 else json.dumps(self._named, sort_keys=True)

    @property
    def default(self) -> str:
        """The template of conversations without tools."""
        return self._named["default"]

    def text_for(self, conversation: Conversation) -> str:
        """The template of a conversation."""
        return self._named.get("tool_use" if conversation.tools else "default", self._named["default"])

    def encode(self, conversation: Conversation, where: str) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and whether each is learnt: the assistant's, of a message of weight 1.

        A template that marks what the assistant writes, with `{% generation %}`, is taken at its word: a token is the
        assistant's if any of its characters is. Of any other template, all that it writes for an assistant's message
        after the prompt that asks for one is the assistant's; what comes before must then be rendered, and tokenised,
        in the same way as when it stands alone, as it does when the model is asked.

        Raises:
            InputError: a conversation that the template refuses or leaves out in part, or a template that cannot be
                taken apart like that.
        """
        encode = self._marked if _GENERATION.search(self.text_for(conversation)) else self._by_prefixes
        text, ids, mask = encode(conversation, where)
        if not any(mask):
            raise InputError(f"{where}: the chat template writes nothing for the assistant: {_MARK}")
        if left_out := values_left_out(conversation, text, lambda other: self._render(other, where)[0], self.ignored):
            raise InputError(f"{where}: {shown(left_out)}")
        return ids, mask

    def _marked(self, conversation: Conversation, where: str) -> tuple[str, list[int], list[bool]]:
        text, spans = self._render(conversation, where)
        if conversation.not_learnt:
            answers = sorted([*conversation.learnt, *conversation.not_learnt])
            if len(spans) != len(answers):
                why = f"marks {len(spans)} texts of {len(answers)} answers, so weight 0 cannot be applied"
                raise InputError(f"{where}: the chat template {why}: mark each answer once")
            spans = [span for span, index in zip(spans, answers, strict=True) if index not in conversation.not_learnt]
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        return text, ids, [any(start < last and first < stop for first, last in spans) for start, stop in offsets]

    def _by_prefixes(self, conversation: Conversation, where: str) -> tuple[str, list[int], list[bool]]:
        texts = [self._render(conversation, where)[0]]
        for turn in conversation.learnt:
            for last, prompt in ((turn, True), (turn + 1, False)):
                part = replace(conversation, messages=conversation.messages[:last])
                texts.append(self._render(part, where, prompt=prompt)[0])
        whole, *prefixes = self.tokenizer.encode_batch(texts)
        mask = [False] * len(whole)
        for turn, prompted, answered in zip(conversation.learnt, prefixes[0::2], prefixes[1::2], strict=True):
            for prefix, what in ((prompted, "up to the prompt for"), (answered, "up to the end of")):
                if whole[: len(prefix)] != prefix:
                    raise InputError(
                        f"{where}: with this chat template, a conversation {what} message {turn} does not begin with "
                        f"the tokens that it has alone, so the assistant's cannot be distinguished: {_MARK}"
                    )
            mask[len(prompted) : len(answered)] = [True] * (len(answered) - len(prompted))
        return texts[0], whole, mask

    def _render(self, conversation: Conversation, where: str, *, prompt: bool = False) -> tuple[str, Spans]:
        """The text, and the spans of characters marked in it."""
        template, names = self.text_for(conversation), self.tokenizer.special_tokens
        for name in conversation.template_kwargs:
            if name in names or not ("chat_template_kwargs" in self.ignored or _reads(template, name)):
                raise InputError(f"{where}: chat_template_kwargs has {name!r}, which the chat template does not read")
        variables = {
            "messages": conversation.messages,
            "tools": conversation.tools,
            "documents": conversation.documents,
            "add_generation_prompt": prompt,
            **conversation.template_kwargs,
            **names,
        }
        try:
            text, spans = render(template, **variables)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InputError(f"{where}: the chat template refuses this conversation: {error}") from error
        return checked_text(text, "its text", where), spans

    def _check(self) -> None:
        """Compile each template, by an example that it may refuse."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for tools in (None, [{"name": "f"}]):
            try:
                self._render(Conversation(messages, tools), "an example")
            except InputError as error:
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
        try:
            found = conversation(value, record.where, self.template.ignored)
            ids, mask = self.template.encode(found, record.where)
        except RecursionError as error:
            raise InputError(f"{record.where}: its values are nested too deeply") from error
        text_bytes = sum(len((message.get("content") or "").encode()) for message in found.messages)
        return Document(ids, mask, text_bytes)

    def documents(self, contents: Sequence[Document | None]) -> list[Document]:
        """See `Reader`."""
        return [document for document in contents if document is not None]


def _reads(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


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


def _templates_of(tokenizer: HuggingFaceTokenizer) -> dict[str, str]:
    """By name; a tokenizer's only template is the default."""
    named = tokenizer.files.chat_templates
    if "default" not in named:
        raise InputError(
            f"tokenizer {str(tokenizer.source)!r} has no chat template: put one in chat_template.jinja beside its "
            "tokenizer.json, or name a file with --chat-template"
        )
    return named
