"""A value that a template leaves out is named; one that it writes in another way, trimmed or as JSON, is not."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_kd.data.chat.conversation import conversation
from megatron_kd.data.chat.conversations import ChatTemplate
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError
from tests.data.chats import chat

ALL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.name }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = "{{ tools | tojson if tools }}" + ALL
CALL = {"function": {"name": "look", "arguments": {"city": 'Par\'is\n"é"', "days": 3, "deep": [{"true": True}, None]}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "looks",
        "parameters": {"type": "object", "properties": {"title": {"type": "string", "enum": ["a", "b"]}}},
    },
}


def refused(tokenizer: HuggingFaceTokenizer, template: str, record: dict[str, Any], *ignored: str) -> str:
    """The values named as left out; empty where the record is accepted."""
    encoder = ChatTemplate(tokenizer, template, ignored)
    try:
        encoder.encode(conversation(record, "r", ignored), "r")
    except InputError as error:
        return str(error).removeprefix("r: not in the text that the chat template writes: ").partition(": take")[0]
    return ""


def called(call: Any = CALL, **more: Any) -> dict[str, Any]:
    """A record in which a tool is called."""
    return {"messages": [*chat("q"), {"role": "assistant", "tool_calls": [call], **more}]}


@pytest.mark.parametrize(
    ("template", "record", "names"),
    [
        (ALL, {"messages": chat("q", "  an \n answer  ")}, ""),
        (ALL.replace("m.content", "m.content | trim"), {"messages": chat("q", "  an \n answer  ")}, ""),
        (ALL.replace("m.content", "m.content | tojson"), {"messages": chat("q", 'é "x"\n\\')}, ""),
        (ALL.replace("m.content", "m.content[:8]"), {"messages": chat("q", "many words")},
         "messages[1].content ('many words')"),
        (ALL, called(), ""),
        (TOOLS, {**called(), "tools": [TOOL]}, ""),
        (ALL, {"messages": chat("q", "a"), "other": "q"}, ""),
        (ALL, {"messages": chat("q", "a"), "other": "", "more": [], "others": {"a": None}}, ""),
        (ALL, {"messages": chat("q", "a"), "other": ["q"]}, "'other' (['q'])"),
        (ALL, {"messages": chat("q", "a"), "other": 0}, "'other' (0)"),
        (ALL.replace("c | tojson", "c.function.name"), called(),
         "messages[1].tool_calls[0].function.arguments ('city')"),
        (ALL.replace("c | tojson", "c.function.arguments | tojson"), called(),
         "messages[1].tool_calls[0].function.name ('look')"),
        (ALL.replace("c | tojson", "c.function"), called(), "messages[1].tool_calls[0].function.arguments as JSON"),
        (ALL, {"messages": [*chat("q"), {"role": "assistant", "content": "a", "flag": True}]}, "messages[1].flag"),
        (ALL.replace("{{ m.name }}", "{{ '!' if m.flag }}"),
         {"messages": [*chat("q"), {"role": "assistant", "content": "a", "flag": True}]}, ""),
        (ALL, {"messages": [*chat("q"), {"role": "assistant", "content": "a", "m": {"deep": ["say"]}}]},
         "messages[1].m.deep[0] ('say')"),
        (ALL, {"messages": chat("q", "a"), "tools": [TOOL]}, "tools[0].function.name ('look')"),
        (TOOLS.replace("tools | tojson", "tools[0].function.name"), {"messages": chat("q", "a"), "tools": [TOOL]},
         "tools[0].function.description ('looks')"),
        (ALL, {"conversations": [{"from": "human", "value": "q", "name": "Al"}, {"from": "gpt", "value": "a"}]}, ""),
        (ALL.replace("{{ m.name }}", ""),
         {"conversations": [{"from": "human", "value": "q", "name": "Al"}, {"from": "gpt", "value": "a"}]},
         "conversations[0].name ('Al')"),
        # Twice the same: the words are in the text, and the second is not.
        ("{% for m in messages[:2] %}<{{ m.role }}>{{ m.content }}</>{% endfor %}", {"messages": chat("q", "a", "q")},
         "messages[2].content ('q')"),
        # A template that accepts certain words only: they alone are compared, without marks.
        ("{% if messages[0].content != 'q' %}{{ raise_exception('no') }}{% endif %}" + ALL,
         {"messages": chat("q", "a")}, ""),
    ],
)  # fmt: skip
def test_what_is_left_out_is_named(
    tokenizer: HuggingFaceTokenizer, template: str, record: dict[str, Any], names: str
) -> None:
    found = refused(tokenizer, template, record)
    assert found.startswith(names) and bool(found) == bool(names), found


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"messages": [*chat("q"), {"role": "assistant", "content": "a", "thinking": "t"}]}, "thinking"),
        ({"messages": chat("q", "a"), "tools": [TOOL]}, "tools"),
        ({"messages": chat("q", "a"), "documents": [{"text": "t"}]}, "documents"),
        ({"messages": chat("q", "a"), "chat_template_kwargs": {"mood": "t"}}, "chat_template_kwargs"),
        ({"messages": chat("q", "a"), "other": "t"}, "other"),
    ],
)
def test_a_key_may_be_left_out_where_the_user_ignores_it(
    tokenizer: HuggingFaceTokenizer, record: dict[str, Any], key: str
) -> None:
    assert refused(tokenizer, ALL, record)
    assert refused(tokenizer, ALL, record, "another")
    assert not refused(tokenizer, ALL, record, key)


def test_many_values_are_not_all_named(tokenizer: HuggingFaceTokenizer) -> None:
    said = {f"key{number}": "text" for number in range(9)}
    found = refused(tokenizer, ALL, {"messages": [*chat("q"), {"role": "assistant", "content": "a", **said}]})
    assert found.count("messages[1].key") == 4 and found.endswith(" and 5 more")
