"""Text to token ids and back: Hugging Face tokenizers and SentencePiece models from local files, and the `null`
tokenizer that has no text.

Nothing here reaches a network or runs code that comes with a tokenizer. Only a SentencePiece model imports
`transformers`, which takes seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from megatron_kd.config.hub_names import absent
from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.data.tokens.sentencepiece import load_sentencepiece, sentencepiece_file
from megatron_kd.data.tokens.tokenizer_files import CONFIG, TOKENIZER, TokenizerFiles, read_tokenizer
from megatron_kd.errors import InputError

# Ends of a document, by the name model families give it; asked for where a bare tokenizer.json does not say.
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")
_CONVERT = "write a fast tokenizer with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(OTHER_DIR)"


class Tokenizer(Protocol):
    """The interface that this package requires of a tokenizer.

    `vocab_size` is the true size, i.e. the largest id + 1 with added tokens; `eos_id` ends a document.
    """

    @property
    def vocab_size(self) -> int:
        """The largest token id + 1."""

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""

    @property
    def fingerprint(self) -> str:
        """A text that is another where the ids of some text are others, wherever the tokenizer was read from."""

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without begin or end tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on several threads where the tokenizer has them."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""


@dataclass(frozen=True)
class NullTokenizer:
    """Ids 0 to `vocab_size` - 1, the last of which ends a document. There is no text to encode."""

    vocab_size: int

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        return self.vocab_size - 1

    @property
    def fingerprint(self) -> str:
        """Its size, which is all there is to it."""
        return f"null {self.vocab_size}"

    def encode(self, text: str) -> list[int]:
        """Always an InputError: this tokenizer knows ids only."""
        raise InputError("tokenizer.tokenizer_type='null' has no text: use 'huggingface' with a tokenizer_model")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Always an InputError, as `encode`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as decimal numbers with spaces between them."""
        return " ".join(str(token) for token in ids)


class HuggingFaceTokenizer:
    """A fast (Rust) Hugging Face tokenizer.

    Attributes:
        files: what it was made of.
        source: the folder or file that it was read from.
        eos_id: the id that ends a document.
        vocab_size: the largest token id + 1.
    """

    def __init__(self, files: TokenizerFiles, source: Path):
        self.files, self.source, self._backend = files, source, files.backend
        # A tokenizer.json may carry the truncation of the model it was made for; a corpus is never truncated.
        self._backend.no_truncation()
        self._backend.no_padding()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.eos_id = _eos_id(vocabulary, files.special_tokens, source)
        self.vocab_size = max(vocabulary.values()) + 1

    @property
    def special_tokens(self) -> dict[str, Any]:
        """The special tokens as chat templates know them: text by name, `additional_special_tokens` a list."""
        return self.files.special_tokens

    def special_id(self, name: str) -> int | None:
        """The id of a special token such as `bos_token`; None where there is none."""
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The chat template for conversations with or without tools; None where there is none, or no default."""
        templates = self.files.chat_templates
        return templates.get("tool_use", templates.get("default")) if tools else templates.get("default")

    def with_chat_template(self, template: str | None) -> HuggingFaceTokenizer:
        """This tokenizer with `template` in place of its own ones; itself if that is its usual one, or None."""
        if template is None or template == self.chat_template():
            return self
        return HuggingFaceTokenizer(replace(self.files, chat_templates={"default": template}), self.source)

    @property
    def fingerprint(self) -> str:
        """A digest of the whole tokenizer and of the id that ends a document."""
        return hashlib.sha256(f"{self._backend.to_str()} {self.eos_id}".encode()).hexdigest()

    def tokens(self) -> dict[int, str]:
        """Every token by its id, as the tokenizer spells it, added and special tokens included."""
        return {token_id: token for token, token_id in self._backend.get_vocab().items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without begin or end tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and the first and last + 1 character that each token stands for."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on several threads."""
        return [item.ids for item in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(cfg: TokenizerConfig) -> Tokenizer:
    """The tokenizer a configuration names.

    Raises:
        InputError: a missing or unreadable tokenizer, or one without a fast version or an end-of-document token.
    """
    if cfg.tokenizer_type == "null":
        if not cfg.vocab_size or cfg.vocab_size < 2:
            raise InputError(f"tokenizer.vocab_size={cfg.vocab_size}: the null tokenizer needs a size of 2 or more")
        return NullTokenizer(cfg.vocab_size)
    if cfg.tokenizer_model is None:
        raise InputError("tokenizer.tokenizer_model is not set: give a tokenizer folder or a tokenizer.json file")
    return load_huggingface(cfg.tokenizer_model)


def load_huggingface(path: str | Path, field: str = "tokenizer.tokenizer_model") -> HuggingFaceTokenizer:
    """A tokenizer from a folder (as `save_pretrained` leaves it), a `tokenizer.json` or a SentencePiece `.model` file.

    Of a folder, its `tokenizer.json` is read or, where there is none, its SentencePiece file. `field` is what errors
    call the path's origin.

    Raises:
        InputError: as `load_tokenizer`.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():  # a pipe would be waited for
        why, cure = absent(path, what="folder or file")
        raise InputError(f"{field}={path}: {why}; {cure}, or run `make corpus` for the demo's")
    if (model := sentencepiece_file(path)) is not None:
        return HuggingFaceTokenizer(load_sentencepiece(model, field), path)
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{field}: there is no file {str(file)!r}: {_CONVERT}")
    # A tokenizer_config.json says which token ends a document; without one the file alone has to do.
    configured = file.name == TOKENIZER and (file.parent / CONFIG).is_file()
    return HuggingFaceTokenizer(read_tokenizer(file, field), file.parent if configured else file)


def _eos_id(vocabulary: dict[str, int], special: dict[str, Any], source: Path) -> int:
    names = [special["eos_token"]] if "eos_token" in special else _EOS_NAMES if source.is_file() else ()
    for name in names:
        if name in vocabulary:
            return vocabulary[name]
    raise InputError(
        f"tokenizer {str(source)!r} names no end-of-document token: set `eos_token` in its tokenizer_config.json"
    )
