"""A record of any shape is a conversation or is refused by its line: nothing else is raised."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from megatron_kd.data.chat.conversation import Conversation, conversation
from megatron_kd.data.chat.conversations import ChatReader, ChatTemplate
from megatron_kd.data.raw.chat_keys import FORMATS, IGNORED
from megatron_kd.data.raw.chunks import Record
from megatron_kd.data.raw.tables import as_in_lines
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError
from tests.data.chats import PLAIN, chat

DATA_MD = Path(__file__).parents[2] / "docs/data.md"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1, {"b": "c"}]}}}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"properties": {"a": {}}}}}]
TEMPLATE = "{{ tools }}{{ documents }}" + PLAIN.replace(
    "<|endoftext|>", "{{ message.tool_calls | tojson if message.tool_calls }}</s>"
).replace("{{ message['content'] }}", "{{ message['content'] }}{{ message.name }}")
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
            {"role": "assistant", "content": "b", "weight": 1, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
            {"role": "assistant", "content": "b"},
        ],
        "tools": TOOLS,
        "documents": [{"title": "t", "text": "x"}],
    },
    "conversations": {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {}})},
            {"from": "gpt", "value": "b", "weight": 1.0},
        ],
        "tools": json.dumps(TOOLS),
    },
    "prompt": {"prompt": chat("a"), "completion": [{"role": "assistant", "content": "b"}]},
    "instruction": {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "s"},
}
WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 0.5, float("nan"), 10**40, "", "x", "\ud800", "{", '{"a": 1}', "[1]"),
    *([], {}, ["x"], [None], [[]], [{}], {"a": None}, {"a": {"b": [1]}}, {"role": "user"}, [["a", "b"]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value in a record, the record itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A record with another value at a path."""
    record = copy.deepcopy(record)
    inner: Any = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return record


@pytest.mark.parametrize("name", RECORDS)
def test_any_value_at_any_place_is_read_or_refused(name: str, tokenizer: HuggingFaceTokenizer) -> None:
    reader = ChatReader(ChatTemplate(tokenizer, TEMPLATE))
    assert reader.read(Record("a:1", "row", RECORDS[name])) is not None
    for path in places(RECORDS[name]):
        for value in WRONG:
            record = changed(RECORDS[name], path, value)
            try:
                reader.read(Record("a:1", "row", record))
            except InputError as error:
                assert str(error).startswith("a:1: ") and len(str(error)) < 600, (path, value, error)


def test_a_value_nested_too_deeply_is_refused(tokenizer: HuggingFaceTokenizer) -> None:
    deep: Any = {}
    for _ in range(3000):
        deep = {"a": deep}
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "x": deep}]}
    with pytest.raises(InputError, match="a:1: its values are nested too deeply"):
        ChatReader(ChatTemplate(tokenizer, PLAIN)).read(Record("a:1", "row", record))


def test_a_record_is_of_the_first_format_that_it_has_all_keys_of() -> None:
    assert len(RECORDS) == len(FORMATS)
    everything = {key: value for record in reversed(RECORDS.values()) for key, value in record.items()}
    everything["messages"] = chat("q", "r")
    del everything["system"]
    assert conversation(everything, "here").messages == chat("q", "r")
    partly = {"prompt": "p", "instruction": "q", "output": "r"}
    found = conversation(partly, "here")
    assert found == Conversation(chat("q", "r"), beside={"prompt": "p"})


def test_the_completion_alone_is_learnt() -> None:
    found = conversation({"prompt": chat("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}, "here")
    assert (found.messages, found.learnt) == (chat("a", "b", "c", "d"), [3])


def test_nulls_of_tables_are_left_out_at_every_depth() -> None:
    rows = [
        {"a": None, "b": [{"c": None, "d": {"e": None, "f": 1}}, None], "g": {"h": None}},
        {"a": "a", "b": [{"c": 1, "d": {"e": 1, "f": None}}], "g": {"h": 1}},
    ]
    kind = pa.struct(pa.Table.from_pylist(rows).schema)
    assert as_in_lines(rows[0], kind) == {"b": [{"d": {"f": 1}}, None], "g": {}}


def test_json_in_tables_is_decoded_and_keeps_its_nulls() -> None:
    kind = pa.struct({"a": pa.list_(pa.struct({"b": pa.json_()})), "c": pa.json_()})
    row = {"a": [{"b": '"text"'}, {"b": '{"d": null}'}, {"b": None}], "c": None}
    assert as_in_lines(row, kind) == {"a": [{"b": "text"}, {"b": {"d": None}}, {}]}


def test_the_documented_keys_are_those_ignored() -> None:
    text = DATA_MD.read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", "".join(re.findall(r"^> .*$", text, re.MULTILINE)))
    assert sorted(listed) == sorted(IGNORED)
