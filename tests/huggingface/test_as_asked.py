"""The template and the end tokens of a student: from its checkpoint, its data, and the folder of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_kd.checkpoints.contents import CHAT_TEMPLATE
from megatron_kd.data.tokens.byte_bpe import train_byte_bpe
from megatron_kd.data.tokens.sidecar import Sidecar
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface
from megatron_kd.errors import InputError
from megatron_kd.huggingface.as_asked import GENERATION, as_trained, generation_settings

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path: Path) -> HuggingFaceTokenizer:
    train_byte_bpe(["7 cats on a mat"], 257, tmp_path / "tokenizer")
    return load_huggingface(tmp_path / "tokenizer")


def test_the_checkpoints_template_outlives_the_data(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    prefix = tmp_path / "chats"
    run = {"dataset": {"chat": True, "train_data_path": [str(prefix)]}}
    assert as_trained(tokenizer, tmp_path, run).chat_template() is None
    Path(f"{prefix}.sha256.json").write_text(Sidecar({}, 1, 1, "of the data").text())
    assert as_trained(tokenizer, tmp_path, run).chat_template() == "of the data"
    (tmp_path / CHAT_TEMPLATE).write_text(TEMPLATE)
    assert as_trained(tokenizer, tmp_path, run).chat_template() == TEMPLATE


def test_the_ends_of_the_tokenizers_folder_are_kept(tmp_path: Path, tokenizer: HuggingFaceTokenizer) -> None:
    tokenizer = tokenizer.with_chat_template(TEMPLATE)
    assert generation_settings(tokenizer, {"dataset": {"chat": True}}) == {"eos_token_id": 0}
    file = tmp_path / "tokenizer" / GENERATION
    file.write_text(json.dumps({"eos_token_id": [7, 8], "do_sample": True}))
    assert generation_settings(tokenizer, {}) == {"eos_token_id": [7, 8], "do_sample": True}
    chat = generation_settings(tokenizer, {"dataset": {"chat": True}})
    assert chat == {"eos_token_id": [7, 8, 0], "do_sample": True}
    file.write_text("{")
    with pytest.raises(InputError, match=f"{GENERATION}: cannot be read"):
        generation_settings(tokenizer, {})
