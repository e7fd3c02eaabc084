"""The assistant's tokens are those that the template writes for it, whichever way the template says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_kd.commands.cli import main
from megatron_kd.data.chat.conversation import Conversation, conversation
from megatron_kd.data.chat.conversations import ChatTemplate
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError
from tests.data.chats import MARKED, PLAIN, chat, chats, write_chats


def expected(tokenizer: HuggingFaceTokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """The output of both templates, assembled piece by piece."""
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        for text, learnt in (
            (f"<|{message['role']}|>\n", False),
            (f"{message['content']}<|endoftext|>\n", message["role"] == "assistant"),
        ):
            piece = tokenizer.encode(text)
            ids += piece
            mask += [learnt] * len(piece)
    return ids, mask


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_the_mask_is_that_of_the_template_token_by_token(tokenizer: HuggingFaceTokenizer, template: str) -> None:
    encoder = ChatTemplate(tokenizer, template)
    for number, messages in enumerate(chats(50)):
        ids, mask = encoder.encode(Conversation(messages), "here")
        assert (ids, mask) == expected(tokenizer, messages), number
        learnt = [token for token, bit in zip(ids, mask, strict=True) if bit]
        answers = [m["content"] + "<|endoftext|>\n" for m in messages if m["role"] == "assistant"]
        assert tokenizer.decode(learnt) == "".join(answers), number


def test_both_templates_agree_token_by_token(tokenizer: HuggingFaceTokenizer) -> None:
    plain, marked = ChatTemplate(tokenizer, PLAIN), ChatTemplate(tokenizer, MARKED)
    for messages in chats(50, seed=1):
        assert plain.encode(Conversation(messages), "here") == marked.encode(Conversation(messages), "here")


def test_an_answer_that_ends_in_a_character_of_several_tokens_is_learnt_whole(tokenizer: HuggingFaceTokenizer) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    )
    ids, mask = ChatTemplate(tokenizer, template).encode(Conversation([{"role": "assistant", "content": "🙂"}]), "here")
    assert tokenizer.decode([token for token, bit in zip(ids, mask, strict=True) if bit]) == "🙂"
    assert sum(mask) > 1  # or the case is not tested


STRIPS = (  # as templates do that leave out earlier thoughts
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'][:1] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (STRIPS, ["one", "two", "three", "four"], "up to the end of message 1 does not begin with the tokens"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}ab{% endif %}",
         ["one", "two"], "up to the prompt for message 1 does not begin with the tokens"),
        ("{{ raise_exception('it must alternate') }}", ["one", "two"], "refuses this conversation: it must alternate"),
        ("{{ messages[0]['content'] + 1 }}", ["one", "two"], "refuses this conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", ["one", "two"], "refuses this conversation"),
        ("{{ messages[0]['content'] }}{% generation %}{% endgeneration %}", ["one", "two"], "writes nothing for"),
        ("{% for m in messages %}", ["one", "two"], "not a Jinja template"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_serve_is_refused(
    tokenizer: HuggingFaceTokenizer, template: str, turns: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ChatTemplate(tokenizer, template).encode(Conversation(chat(*turns)), "a.jsonl:1")


def test_the_other_spelling_is_the_same_conversation() -> None:
    spelt = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert conversation(spelt, "here") == Conversation(chat("a", "b"))


GOOD = {"messages": chat("a", "b")}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, r"no conversation at 'messages', 'conversations', .* \(it has 'text'\)"),
        ({"messages": None, "text": None}, r"no conversation at .* \(it has no keys with a value\)"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pairs .* are not supported, only 'prompt'"),
        ({"messages": [{"role": "system", "content": "a", "train": "false"}]}, r"messages\[0\]: train 'false' is not"),
        ({"messages": []}, "'messages' is not a list with messages"),
        ({"messages": ["a"]}, r"messages\[0\] is a str, not an object"),
        ({"messages": [{"role": "robot", "content": "a"}]}, r"messages\[0\] has the role 'robot', which is"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\] has the role None"),
        ({"messages": [{"role": "assistant", "content": 3}]}, r"messages\[0\]: its content is an int, not a string"),
        ({"messages": [{"role": "assistant"}]}, r"messages\[0\]: its content is a NoneType"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message is the assistant's"),
        ({**GOOD, "tools": "a"}, "'tools' is not a list of objects"),
        ([1], "a JSON list"),
    ],
)  # fmt: skip
def test_a_malformed_conversation_is_named_or_skipped_and_counted(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer, record: Any, message: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in (GOOD, record, GOOD)))
    options: dict[str, Any] = {"chat": True, "chat_template": PLAIN, "workers": 1}
    with pytest.raises(InputError, match=rf"a\.jsonl:2: {message}"):
        preprocess([file], tmp_path / "out", tokenizer, **options)
    counts = preprocess([file], tmp_path / "out", tokenizer, skip_malformed=True, **options)
    assert (counts.documents, counts.malformed) == (2, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_of_conversations_hold_ids_and_a_byte_of_mask_for_each(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer, workers: int
) -> None:
    conversations = chats(30)
    file = write_chats(tmp_path / "a.jsonl", conversations)
    counts = preprocess([file], tmp_path / "out", tokenizer, chat=True, chat_template=MARKED, workers=workers)
    data, mask = IndexedDataset(str(tmp_path / "out")), np.fromfile(tmp_path / "out.loss_mask.bin", dtype=np.uint8)
    encoded = [ChatTemplate(tokenizer, MARKED).encode(Conversation(messages), "here") for messages in conversations]
    assert [data[index].tolist() for index in range(len(data))] == [ids for ids, _ in encoded]
    assert mask.tolist() == [int(bit) for _, bits in encoded for bit in bits]
    assert (counts.documents, counts.tokens, counts.learnt) == (30, len(mask), mask.sum())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.jsonl", "out.bin", "out.idx", "out.loss_mask.bin", "out.sha256.json")
    ]


def test_text_made_at_the_place_of_conversations_has_no_mask(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    preprocess(
        [write_chats(tmp_path / "a.jsonl", chats(3))], tmp_path / "out", tokenizer, chat=True, chat_template=PLAIN
    )
    (tmp_path / "a.txt").write_text("text")
    preprocess([tmp_path / "a.txt"], tmp_path / "out", tokenizer, workers=1)
    assert not (tmp_path / "out.loss_mask.bin").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chat"], "has no chat template: put one in chat_template.jinja"),
        (["--chat", "--chat-template", "none.jinja"], "--chat-template none.jinja: there is no such file"),
        (["--chat-template", "none.jinja"], "belongs to conversations; give --chat too"),
        (["--chat", "--json-key", "body"], "--json-key: belongs to text"),
        (["--chat", "--no-append-eod"], "--no-append-eod: belongs to text"),
    ],
)
def test_the_command_refuses_in_one_line(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    file = write_chats(tmp_path / "a.jsonl", chats(3))
    argv = ["--input", str(file), "--output-prefix", str(tmp_path / "out"), "--tokenizer", str(tokenizer_folder)]
    assert main(["preprocess", *argv, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_text_files_have_no_conversations(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    argv = ["--input", str(tmp_path / "a.txt"), "--output-prefix", str(tmp_path / "out"), "--chat"]
    assert main(["preprocess", *argv, "--tokenizer", str(tokenizer_folder)]) == 2
    assert "a.txt: text has no conversations" in capsys.readouterr().err
