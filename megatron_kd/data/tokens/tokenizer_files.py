"""A Hugging Face tokenizer's files as transformers 4 and 5 save them, read without either.

    tokenizer.json                      all that decides on ids; the `tokenizers` library reads it
    tokenizer_config.json               the names of special tokens, tokens that tokenizer.json lacks, chat templates
    special_tokens_map.json             names of special tokens, where tokenizer_config.json lists no added tokens
    chat_template.jinja                 the default chat template
    additional_chat_templates/*.jinja   further ones, by name

Ids are those that transformers 4 gives: `tests/data/test_tokenizer_files.py` compares. Importing transformers takes
seconds, and it refuses what its next major version writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kd.config.values import a_type
from megatron_kd.errors import InputError
from megatron_kd.messages import first_line

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

TOKENIZER, CONFIG, SPECIAL, TEMPLATE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE = "additional_special_tokens"
_LFS = "version https://git-lfs"

# Special tokens that a class of transformers has where no file names others.
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_END_OF_TEXT = "<|endoftext|>"
_OF_CLASS: dict[str, dict[str, str]] = {
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT),
    "GPTNeoXTokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END_OF_TEXT),
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}
_LEAVE_PREFIX_SPACE = ("LlamaTokenizer", "T5Tokenizer")  # to tokenizer.json, where tokenizer_config.json does not say
_CLASS_OF_MODEL = {"llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer"}
_CLASS_OF_MODEL |= {"qwen3": "Qwen2Tokenizer", "gpt2": "GPT2Tokenizer"}


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as its files describe it.

    Attributes:
        backend: text to ids.
        special_tokens: by name, in the order of transformers; `additional_special_tokens` is a list.
        chat_templates: by name; the usual one is `default`.
        settings: the content of tokenizer_config.json.
    """

    backend: Tokenizer
    special_tokens: dict[str, Any]
    chat_templates: dict[str, str]
    settings: Mapping[str, Any]


def read_tokenizer(file: Path, field: str) -> TokenizerFiles:
    """The tokenizer in a file; where that is a `tokenizer.json`, with what the files beside it say.

    Args:
        file: its path.
        field: what errors call the path's origin.

    Raises:
        InputError: a file that is missing, unreadable or malformed, or a tokenizer that is code.
    """
    from tokenizers import Tokenizer

    text = _text(file, field)
    if "model" not in _object(file, text, field):
        raise InputError(f"{field}: {str(file)!r} has no `model`: it is not a tokenizer.json")
    folder = file.parent if file.name == TOKENIZER else None
    settings = {} if folder is None else _optional(folder / CONFIG, field)
    special = {} if folder is None else _special_tokens(folder, settings, field)
    try:
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        why = f"{first_line(error)}; copy it again, or write it with the version of `tokenizers` that is installed here"
        raise InputError(f"{field}: {str(file)!r} is not a tokenizer: {why}") from error
    if backend.padding:
        special.setdefault("pad_token", backend.padding["pad_token"])
    _add_tokens(backend, settings, special)
    _set_prefix_space(backend, settings)
    templates = {} if folder is None else _chat_templates(folder, settings, field)
    words = {name: [*map(str, t)] if isinstance(t, list) else str(t) for name, t in special.items()}
    return TokenizerFiles(backend, words, templates, settings)


def _special_tokens(folder: Path, settings: dict[str, Any], field: str) -> dict[str, Any]:
    """Text or `AddedToken` by name, as the files give it; `_MORE` is a list of these."""
    kind = str(settings.get("tokenizer_class") or _class_of_model(folder, field)).removesuffix("Fast")
    if kind not in _OF_CLASS and "auto_map" in settings and "AutoTokenizer" in settings["auto_map"]:
        raise InputError(
            f"{field}: {str(folder / CONFIG)!r} names code of its own (auto_map), which is never run: write a fast "
            "tokenizer with transformers: AutoTokenizer.from_pretrained(DIR, trust_remote_code=True)"
            ".save_pretrained(OTHER_DIR), and remove auto_map"
        )
    given = {**_OF_CLASS.get(kind, {}), **settings}
    more = list(given.get(_MORE) or [])
    if "added_tokens_decoder" not in settings:  # as transformers 4 does
        mapped = _optional(folder / SPECIAL, field)
        more += [token for token in mapped.get(_MORE) or [] if token not in more]
        given |= mapped
    extra = given.get("extra_special_tokens") or {}
    if isinstance(extra, list):  # transformers 5
        more += [token for token in extra if token not in more]
        extra = {}
    of_model = {**extra, **(given.get("model_specific_special_tokens") or {})}
    named = {name: given.get(name) for name in _NAMES} | of_model
    found = {n: _token(token, n, folder, field) for n, token in named.items() if token is not None}
    if more:
        found[_MORE] = [_token(token, _MORE, folder, field) for token in more]
    return {name: found[name] for name in dict.fromkeys([*_NAMES, _MORE, *found]) if name in found}


def _class_of_model(folder: Path, field: str) -> str:
    return _CLASS_OF_MODEL.get(_optional(folder / "config.json", field).get("model_type", ""), "")


def _token(value: Any, name: str, folder: Path, field: str) -> str | AddedToken:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return _added(value)
    raise InputError(f"{field}: {str(folder / CONFIG)!r} has {name}={value!r}, which is neither text nor a token")


def _added(value: dict[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{flag: bool(value[flag]) for flag in flags if flag in value})


def _add_tokens(backend: Tokenizer, settings: dict[str, Any], special: dict[str, Any]) -> None:
    """Add the tokens that tokenizer.json lacks or describes otherwise, in the order of transformers."""
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder().values()
    same, names = {repr(token) for token in known}, {token.content for token in known if token.special}
    words = {str(token) for token in _flat(special)}
    added = []
    listed = settings.get("added_tokens_decoder") or {}
    for _, value in sorted(listed.items(), key=lambda item: int(item[0])):
        token = _added(value)
        if repr(token) not in same:
            token.special = token.special or token.content in words
            added.append(token)
            names.add(token.content)
    by_name = {token.content: token for token in known}
    for token in _flat(special):
        if str(token) not in names:
            names.add(str(token))
            plain = by_name.get(str(token)) or AddedToken(str(token), special=True)
            added.append(plain if isinstance(token, str) else token)
            added[-1].special = True
    backend.add_tokens(added)


def _flat(special: dict[str, Any]) -> Iterator[str | AddedToken]:
    for value in special.values():
        yield from value if isinstance(value, list) else [value]


def _set_prefix_space(backend: Tokenizer, settings: dict[str, Any]) -> None:
    """Whether text begins as if a space came before it, which tokenizer_config.json decides over tokenizer.json."""
    from tokenizers import pre_tokenizers

    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    wanted = settings.get("add_prefix_space", None if kind in _LEAVE_PREFIX_SPACE else False)
    if wanted is None or backend.pre_tokenizer is None:
        return
    state = json.loads(backend.pre_tokenizer.__getstate__())
    if state.get("type") == "ByteLevel" and state["add_prefix_space"] != wanted:
        del state["type"]
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(**{**state, "add_prefix_space": wanted})


def _chat_templates(folder: Path, settings: dict[str, Any], field: str) -> dict[str, str]:
    """Templates by name. Files win over tokenizer_config.json."""
    files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE).is_file():
        files["default"] = folder / TEMPLATE
    if files:
        return {name: _text(path, field) for name, path in files.items()}
    given = settings.get("chat_template")
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        given = {item.get("name"): item.get("template") for item in given}
    found = {} if given is None else given if isinstance(given, dict) else {"default": given}
    if not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise InputError(f"{field}: {str(folder / CONFIG)!r} has a chat_template that is neither text nor a list")
    return found


def _optional(path: Path, field: str) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    return _object(path, _text(path, field), field) if path.is_file() else {}


def _text(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{field}: {str(path)!r} cannot be read ({error}): copy it again") from error


def _object(path: Path, text: str, field: str) -> dict[str, Any]:
    if text.startswith(_LFS):
        why = "is Git LFS's pointer to a file and not the file: run `git lfs pull` in its repository"
        raise InputError(f"{field}: {str(path)!r} {why}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{field}: {str(path)!r} is not readable JSON ({error}): copy it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{field}: {str(path)!r} is {a_type(value)}, not a JSON object: copy it again")
    return value
