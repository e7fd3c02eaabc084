"""Tokenizer folders: what is read from them is what transformers 4 makes of them, token for token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from megatron_kd.data.tokens.save_tokenizer import save_tokenizer
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer, load_huggingface
from megatron_kd.errors import InputError
from tests.data.test_sentencepiece import LIKE_LLAMA, _train

TEXTS = [
    "def f(x):\n    return x  # twice  spaced\n",
    "\ttabs\r\nand CRLF, héllo, 漢字, 🙂, can 't , do n't .",
    " leading, trailing ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|left|> a <|left|>b<s></s> <unk> <|new|> c",
    "",
]
END = "<|endoftext|>"
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
SPACED = {**PLAIN, "add_prefix_space": True}
LEFT = {"content": "<|left|>", "lstrip": True, "rstrip": True, "normalized": False, "special": False}


def configured(folder: Path, settings: dict[str, Any], **files: Any) -> None:
    for name, value in {"tokenizer_config": settings, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


def with_prefix_space(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.save(str(folder / "tokenizer.json"))


def with_added(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>", lstrip=True)])
    backend.add_tokens([AddedToken("<|left|>")])
    backend.save(str(folder / "tokenizer.json"))


def saved_by_transformers(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, bos_token="<s>", pad_token=END,
        additional_special_tokens=["<|im_start|>", AddedToken("<|im_end|>", rstrip=True)],
    )  # fmt: skip
    tokenizer.add_tokens(["<|new|>", AddedToken("<|left|>", lstrip=True)])
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save_pretrained(folder)


def saved_by_llama(folder: Path) -> None:
    from transformers import LlamaTokenizerFast

    _train(folder / "llama.model", **LIKE_LLAMA)
    (folder / "tokenizer.json").unlink()
    LlamaTokenizerFast(vocab_file=str(folder / "llama.model"), legacy=False).save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)


def saved_by_qwen(folder: Path) -> None:
    from transformers import Qwen2TokenizerFast

    with_added(folder)
    Qwen2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>").save_pretrained(folder)


FOLDERS: dict[str, Callable[[Path], Any]] = {
    "as `make corpus` makes it": lambda folder: None,
    "saved by transformers": saved_by_transformers,
    "saved by Llama's class": saved_by_llama,
    "saved by Qwen's class": saved_by_qwen,
    "a space before the text, in tokenizer.json alone": with_prefix_space,
    "a space before the text, in both": lambda f: (with_prefix_space(f), configured(f, SPACED)),
    "a space before the text, in tokenizer_config.json alone": lambda f: configured(f, SPACED),
    "an end that no file names, of the class": lambda f: configured(f, {"tokenizer_class": "GPT2Tokenizer"}),
    "an end that tokenizer.json does not have": lambda f: configured(f, {**PLAIN, "eos_token": "</s>"}),
    "a special token that is an ordinary one": lambda f: configured(f, {**PLAIN, "pad_token": "a"}),
    "tokens that tokenizer.json does not have": lambda f: configured(
        f, {**PLAIN, "added_tokens_decoder": {"401": LEFT, "400": {"content": "<|im_start|>", "special": True}}}
    ),
    "tokens that tokenizer.json describes otherwise": lambda f: (
        with_added(f), configured(f, {**PLAIN, "added_tokens_decoder": {"402": LEFT}})
    ),
    "names in special_tokens_map.json": lambda f: (
        with_added(f),
        configured(
            f, {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|left|>"]},
            special_tokens_map={"eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False,
                                              "normalized": False, "single_word": False},
                                "additional_special_tokens": ["<|im_start|>"]},
        ),
    ),
    "a token that is special by name alone": lambda f: (
        with_added(f), configured(f, {**PLAIN, "additional_special_tokens": ["<|left|>"]})
    ),
    "a listed token that is special by name alone": lambda f: (
        with_added(f),
        configured(f, {**PLAIN, "additional_special_tokens": ["<|left|>"], "added_tokens_decoder": {
            "402": {**LEFT, "lstrip": False, "rstrip": False, "normalized": True}}}),
    ),
    "names of one model": lambda f: (
        with_added(f), configured(f, {**PLAIN, "extra_special_tokens": {"image_token": "<|im_start|>"}})
    ),
    "a truncation": lambda f: _truncated(f),
}  # fmt: skip


def _truncated(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=5)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small tokenizer, changed."""
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    FOLDERS[request.param](tmp_path)
    return tmp_path


def assert_same(ours: HuggingFaceTokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    assert ours.special_tokens == theirs.special_tokens_map
    assert list(ours.special_tokens) == list(theirs.special_tokens_map)
    assert ours.eos_id == theirs.eos_token_id
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert json.loads(ours.files.backend.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert ours.files.backend.to_str() == theirs.backend_tokenizer.to_str()  # of which the fingerprint is made
    templates = theirs.chat_template
    assert ours.files.chat_templates == (
        templates if isinstance(templates, dict) else {} if templates is None else {"default": templates}
    )


def test_a_folder_is_read_as_transformers_reads_it(folder: Path) -> None:
    assert_same(load_huggingface(folder), folder)


def test_a_saved_folder_is_the_same_tokenizer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, saved = load_huggingface(folder), tmp_path_factory.mktemp("saved")
    save_tokenizer(ours, saved)
    assert load_huggingface(saved).fingerprint == ours.fingerprint
    assert_same(load_huggingface(saved), saved)


def test_a_folder_of_transformers_5_is_saved_for_both(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "a")
    with_added(tmp_path / "a")
    settings = {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend", "eos_token": END}
    configured(tmp_path / "a", {**settings, "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    ours = load_huggingface(tmp_path / "a")
    assert ours.special_tokens == {"eos_token": END, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    (tmp_path / "b").mkdir()
    save_tokenizer(ours, tmp_path / "b")
    assert_same(ours, tmp_path / "b")


def test_a_bare_file_is_read_as_transformers_reads_it(tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    shutil.copyfile(tokenizer_folder / "tokenizer.json", tmp_path / "tokenizer.json")
    with_prefix_space(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = load_huggingface(tmp_path / "tokenizer.json")
    assert ours.files.backend.to_str() == theirs.backend_tokenizer.to_str()


def test_code_of_a_tokenizer_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    configured(tmp_path, {"eos_token": END, "tokenizer_class": "Ours", "auto_map": {"AutoTokenizer": ["a.Ours", None]}})
    with pytest.raises(InputError, match=r"tokenizer_config\.json' names code of its own"):
        load_huggingface(tmp_path)
