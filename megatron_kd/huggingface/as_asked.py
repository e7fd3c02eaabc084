"""How a student is asked, and where its answers end: the chat template and the end tokens that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_kd.checkpoints.contents import CHAT_TEMPLATE
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.data.chat.end_of_turn import end_of_turn
from megatron_kd.data.chat.trained_template import trained_template
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError

GENERATION = "generation_config.json"


def as_trained(tokenizer: HuggingFaceTokenizer, checkpoint: Path, run: dict[str, Any]) -> HuggingFaceTokenizer:
    """A student's tokenizer with the chat template of the conversations that it was trained on.

    Args:
        tokenizer: of the run.
        checkpoint: the student's folder. Of earlier versions, which do not hold the template, the run's data tells.
        run: the content of its `run_config.yaml`.
    """
    if (checkpoint / CHAT_TEMPLATE).is_file():
        return tokenizer.with_chat_template((checkpoint / CHAT_TEMPLATE).read_text(encoding="utf-8"))
    data, fields = run.get("dataset") or {}, ("chat", "data_path", "train_data_path")
    return tokenizer.with_chat_template(
        trained_template(DatasetConfig(**{name: data[name] for name in fields if name in data}))
    )


def generation_settings(tokenizer: HuggingFaceTokenizer, run: dict[str, Any]) -> dict[str, Any]:
    """The content of `generation_config.json`.

    It comes from the folder that the tokenizer came from. A student that was trained on conversations also stops at the
    end of a turn, which need not be the end of a document.

    Args:
        tokenizer: as it was trained with.
        run: the content of the student's `run_config.yaml`.

    Raises:
        InputError: a `generation_config.json` beside the tokenizer that cannot be read.
    """
    beside = _generation_beside(tokenizer)
    ends = _as_list(beside.get("eos_token_id", tokenizer.eos_id))
    end = end_of_turn(tokenizer) if (run.get("dataset") or {}).get("chat") else None
    ends = list(dict.fromkeys([*ends, *([] if end is None else [end])]))
    tokens = {name: tokenizer.special_id(name) for name in ("bos_token", "pad_token")}
    ids = {f"{name}_id": token for name, token in tokens.items() if token is not None}
    return {**ids, **beside, "eos_token_id": ends[0] if len(ends) == 1 else ends}


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
