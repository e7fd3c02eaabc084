"""How a student is asked, and where its answers end: the chat template and the end tokens that it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import CHAT_TEMPLATE
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.end_of_turn import end_of_turn
from megatron_kd.data.chat.trained_template import trained_template
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Asked:
    """Settings with which an exported student is asked as it was trained.

    Attributes:
        chat_template: in place of the tokenizer's; None: the tokenizer's own.
        generation: the content of `generation_config.json`.
    """

    chat_template: str | None
    generation: dict[str, Any]


def as_asked(checkpoint: Path, run: dict[str, Any], tokenizer: HuggingFaceTokenizer) -> Asked:
    """The settings of a student, by its checkpoint, its run and its tokenizer.

    How a model generates comes from the folder that its tokenizer came from. A student that was trained on
    conversations also stops at the end of a turn, which need not be the end of a document.

    Args:
        checkpoint: its folder.
        run: the content of its `run_config.yaml`.
        tokenizer: of the run.

    Raises:
        InputError: a `generation_config.json` beside the tokenizer that cannot be read.
    """
    data = run.get("dataset") or {}
    template = _template(checkpoint, data)
    generation = _generation_beside(tokenizer)
    ends = _as_list(generation.get("eos_token_id", tokenizer.eos_id))
    end = end_of_turn(tokenizer, template) if data.get("chat") else None
    ends = list(dict.fromkeys([*ends, *([] if end is None else [end])]))
    tokens = {name: tokenizer.special_id(name) for name in ("bos_token", "pad_token")}
    ids = {f"{name}_id": token for name, token in tokens.items() if token is not None}
    return Asked(template, {**ids, **generation, "eos_token_id": ends[0] if len(ends) == 1 else ends})


def _template(checkpoint: Path, data: dict[str, Any]) -> str | None:
    """The template of the run's conversations: in its checkpoint, or by its data in checkpoints of earlier versions."""
    if (checkpoint / CHAT_TEMPLATE).is_file():
        return (checkpoint / CHAT_TEMPLATE).read_text(encoding="utf-8")
    fields = ("chat", "data_path", "train_data_path")
    return trained_template(DatasetConfig(**{name: data[name] for name in fields if name in data}))


def _generation_beside(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    folder = tokenizer.source if tokenizer.source.is_dir() else tokenizer.source.parent
    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again, or delete it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: does not hold an object; copy it again, or delete it")
    return values


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
