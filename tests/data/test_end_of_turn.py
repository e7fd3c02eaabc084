"""Where answers end, by the templates that people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kd.data.chat.conversations import ChatTemplate
from megatron_kd.data.chat.end_of_turn import end_of_turn, ends_by_text_alone
from megatron_kd.data.preprocessing.tokenise_files import preprocess
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface
from tests.data.chats import chat, write_chats

LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}"
    "<|im_end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
REFUSES = "{{ raise_exception('only with a system message') }}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_bpe(["7 cats on a mat"], 257, folder)
    tokenizer = load_huggingface(folder)
    tokenizer.files.backend.add_special_tokens(
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (LLAMA3, "<|eot_id|>"),
        (CHATML, "<|im_end|>"),
        (MARKED, "<|eot_id|>"),  # what is not learnt ends nothing
        (PLAIN, None),
        (REFUSES, None),
        (None, None),
    ],
)
def test_an_answer_ends_at_the_last_added_token_that_is_learnt(
    template: str | None, end: str | None, tokenizer: HuggingFaceTokenizer
) -> None:
    found = end_of_turn(tokenizer.with_chat_template(template))
    assert (None if found is None else tokenizer.decode([found])) == end


@pytest.mark.parametrize(("template", "by_text"), [(LLAMA3, False), (MARKED, False), (PLAIN, True), (REFUSES, False)])
def test_a_template_without_a_token_to_stop_at_is_known(
    template: str, by_text: bool, tokenizer: HuggingFaceTokenizer
) -> None:
    assert ends_by_text_alone(ChatTemplate(tokenizer, template)) is by_text


@pytest.mark.parametrize(("template", "warned"), [(CHATML, False), (PLAIN, True)])
def test_preprocessing_warns_of_answers_that_no_token_ends(
    template: str, warned: bool, tokenizer: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    source, said = write_chats(tmp_path / "chats.jsonl", [chat("a", "b")]), list[str]()
    preprocess([source], tmp_path / "out", tokenizer, chat=True, chat_template=template, workers=1, say=said.append)
    assert [line.partition(":")[0] for line in said] == ["warning"] * warned
