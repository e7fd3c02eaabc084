"""SentencePiece files give SentencePiece's ids, or are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from megatron_kd.data.tokens.tokenizer import load_huggingface
from megatron_kd.errors import InputError
from tests.data.chats import PLAIN
from tests.data.conftest import STDLIB

TEXT = "def walk(tree):\n    for node in tree:  # déjà 漢字 🙂\n        yield  node"


def _train(path: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    lines = (STDLIB / "argparse.py").read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=600,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


LIKE_LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
LIKE_T5 = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.parametrize("options", [LIKE_LLAMA, LIKE_T5, {"model_type": "bpe"}], ids=["Llama's", "T5's", "plain BPE"])
def test_a_model_gives_its_own_ids(tmp_path: Path, options: dict[str, Any]) -> None:
    model = _train(tmp_path / "my.model", **options)
    tokenizer = load_huggingface(tmp_path / "my.model")
    lines = (STDLIB / "inspect.py").read_text().splitlines()
    assert tokenizer.encode_batch([TEXT, *lines]) == [model.encode(text) for text in (TEXT, *lines)]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (model.get_piece_size(), model.eos_id())
    if options is LIKE_LLAMA:
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_a_folder_with_a_model_is_read_with_its_chat_template(tmp_path: Path) -> None:
    model = _train(tmp_path / "tokenizer.model", **LIKE_LLAMA)
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    tokenizer = load_huggingface(tmp_path)
    assert tokenizer.encode(TEXT) == model.encode(TEXT)
    assert tokenizer.chat_template() == PLAIN


def test_a_model_that_no_converter_reproduces_is_refused(tmp_path: Path) -> None:
    _train(tmp_path / "my.model", model_type="bpe", byte_fallback=True)  # bytes, but spaces joined
    with pytest.raises(InputError, match=r"no fast tokenizer gives the ids of this SentencePiece model.*other ids"):
        load_huggingface(tmp_path / "my.model")


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"my\.model' is not a SentencePiece model"):
        load_huggingface(tmp_path / "my.model")
