"""Tokenizers: what is encoded decodes to itself, sizes count added tokens, and errors name path and cure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.data.tokens.byte_bpe import EOS_TOKEN, train_byte_bpe
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface, load_tokenizer
from megatron_kd.errors import InputError

TEXTS = [
    "def f(x):\n    return x  # twice  spaced\n",
    "\ttabs\r\nand CRLF, héllo, 漢字, 🙂, can 't , do n't .",
    " leading, trailing ",
    "",
]


def test_text_survives_encoding_and_decoding(tokenizer: HuggingFaceTokenizer) -> None:
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_trained_tokenizer_has_the_asked_size_and_its_end_of_document(tokenizer: HuggingFaceTokenizer) -> None:
    assert tokenizer.vocab_size == 400
    assert tokenizer.eos_id == 0
    assert tokenizer.decode([0]) == EOS_TOKEN


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in "ab":
        assert train_byte_bpe(["to be or not to be, that is the question\n" * 3], 270, tmp_path / name) == 270
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 257"):
        train_byte_bpe(["text"], 256, tmp_path)


def test_folder_and_file_give_the_same_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    bare = shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path / "bare.json")
    for path in (tokenizer_folder, tokenizer_folder / "tokenizer.json", bare):
        loaded = load_tokenizer(TokenizerConfig(tokenizer_model=str(path)))
        assert (loaded.vocab_size, loaded.eos_id) == (400, 0)
        assert loaded.decode(loaded.encode(TEXTS[1])) == TEXTS[1]


def test_added_tokens_count_and_truncation_does_not_happen(tokenizer_folder: Path, tmp_path: Path) -> None:
    backend = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    backend.add_tokens(["<|user|>"])
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_huggingface(tmp_path)
    assert loaded.vocab_size == 401
    assert len(loaded.encode("many words of text, " * 9)) > 4


def test_null_tokenizer_has_ids_and_no_text() -> None:
    null = load_tokenizer(TokenizerConfig(tokenizer_type="null", vocab_size=100))
    assert (null.vocab_size, null.eos_id, null.decode([1, 2])) == (100, 99, "1 2")
    with pytest.raises(InputError, match="no text"):
        null.encode("text")


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (TokenizerConfig(tokenizer_type="null"), r"tokenizer\.vocab_size=None"),
        (TokenizerConfig(), r"tokenizer\.tokenizer_model is not set"),
        (
            TokenizerConfig(tokenizer_model="no/such"),
            "=no/such: there is no such folder or file;.*hf download no/such.*make corpus",
        ),
    ],
)
def test_a_missing_value_is_named(cfg: TokenizerConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_tokenizer(cfg)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not readable JSON"), ('{"a": 1}', "not a tokenizer.json")],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(InputError, match=message):
            load_huggingface(path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"there is no file '{tmp_path}/tokenizer.json'.*save_pretrained"):
        load_huggingface(tmp_path)


def test_a_tokenizer_without_end_of_document_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(InputError, match="set `eos_token`"):
        load_huggingface(tmp_path)


def test_a_tokenizer_is_loaded_without_torch_and_transformers(tokenizer_folder: Path) -> None:
    code = (
        "import sys; from megatron_kd.data.tokens.tokenizer import load_huggingface as load; "
        "load(sys.argv[1]).encode('a'); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tokenizer_folder)], check=False).returncode == 0
