"""Writes a tokenizer as a folder that transformers 4 and 5 load alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_kd.data.tokens.sentencepiece import MODEL_NAMES
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.data.tokens.tokenizer_files import CONFIG, SPECIAL, TEMPLATE, TEMPLATES, TOKENIZER, TokenizerFiles

_PLAIN = "PreTrainedTokenizerFast"
# Of transformers 5 alone, of the place it was read from, or written elsewhere in the folder.
_LEFT_OUT = (
    "backend", "is_local", "auto_map", "name_or_path", "tokenizer_file", "chat_template", "extra_special_tokens",
    "model_specific_special_tokens",
)  # fmt: skip
_MORE = "additional_special_tokens"


def save_tokenizer(tokenizer: HuggingFaceTokenizer, folder: Path) -> None:
    """Write the tokenizer and its chat templates into a folder that is there.

    It makes no token types, which these models do not take: `generate(**tokenizer(text))` would refuse them.
    """
    files = tokenizer.files
    (folder / TOKENIZER).write_text(files.backend.to_str(pretty=True), encoding="utf-8")
    _write(folder / CONFIG, _settings(files))
    _write(folder / SPECIAL, files.special_tokens)
    for name, template in files.chat_templates.items():
        path = folder / TEMPLATE if name == "default" else folder / TEMPLATES / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    for name in MODEL_NAMES:  # some classes of transformers read it again
        if (tokenizer.source / name).is_file():
            shutil.copyfile(tokenizer.source / name, folder / name)


def _settings(files: TokenizerFiles) -> dict[str, Any]:
    kept = {name: value for name, value in files.settings.items() if name not in _LEFT_OUT}
    kind = kept.get("tokenizer_class")
    own = {n: token for n, token in files.special_tokens.items() if not n.endswith("_token") or n not in kept}
    added = {
        str(token_id): {
            "content": token.content,
            **{flag: getattr(token, flag) for flag in ("lstrip", "normalized", "rstrip", "single_word", "special")},
        }
        for token_id, token in sorted(files.backend.get_added_tokens_decoder().items())
    }
    return {
        "clean_up_tokenization_spaces": False,
        **kept,
        **own,
        "added_tokens_decoder": added,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": _PLAIN if kind in (None, "TokenizersBackend") else kind,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
