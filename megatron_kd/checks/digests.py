"""Digests of the files that a configuration names: an input is its content, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_kd.checkpoints.contents import MANIFEST, find_checkpoint
from megatron_kd.config.blend import Blend, parse_blend
from megatron_kd.config.container import ConfigContainer
from megatron_kd.config.problem import value_of
from megatron_kd.config.text_files import LOSS_MASK
from megatron_kd.errors import InputError
from megatron_kd.runtime.files import digest_of

Value = str | list[str | float]


def input_digests(cfg: ConfigContainer) -> dict[str, str]:
    """The digest of each input that `cfg` names and that is there, by the dotted name of its field."""
    return {name: digest for name in input_fields(cfg) if (digest := input_digest(name, value_of(cfg, name)))}


def input_fields(cfg: ConfigContainer) -> list[str]:
    """The fields of `cfg` whose values name what a run reads: data, tokenizers, weights."""
    return [name for name in _FILES if cfg.distillation is not None or not name.startswith("model.teacher.")]


def input_digest(name: str, value: Value | None) -> str | None:
    """A digest of what the input field `name` names with `value`; None where that is not there, or is not an input."""
    if value is None or name not in _FILES:
        return None
    try:
        digest = hashlib.sha256()
        for part in _FILES[name](value):
            digest.update(f"{part if isinstance(part, float) else digest_of(part)}\n".encode())
        return digest.hexdigest()
    except (OSError, InputError):
        return None  # other checks report it


def _blend(value: Value) -> Iterator[Path | float]:
    """Files and shares of a blend."""
    blend = parse_blend(value, "")
    if not isinstance(blend, Blend):
        return
    total = sum(blend.weights or [])
    yield from (weight / total for weight in blend.weights or [])
    for prefix in blend.prefixes:
        yield from (Path(prefix + ending) for ending in (".bin", ".idx"))
        if os.path.isfile(prefix + LOSS_MASK):
            yield Path(prefix + LOSS_MASK)


def _file(value: Value) -> Iterator[Path]:
    yield Path(str(value))


def _tokenizer(value: Value) -> Iterator[Path]:
    """The file that ids are read from; see `data.tokens.tokenizer`."""
    path = Path(str(value))
    names = ["tokenizer.json", "tokenizer.model"]
    yield next((path / name for name in names if (path / name).is_file()), path)


def _huggingface(value: Value) -> Iterator[Path]:
    folder = Path(str(value))
    yield folder / "config.json"
    yield from sorted(folder.glob("*.safetensors"))


def _checkpoint(value: Value) -> Iterator[Path]:
    """A manifest has the hashes of all the other files."""
    folder = find_checkpoint(str(value), "")
    if (folder / MANIFEST).is_file():
        yield folder / MANIFEST
    else:
        yield from sorted(path for path in folder.iterdir() if path.is_file())


_FILES: dict[str, Callable[[Value], Iterator[Path | float]]] = {
    "dataset.text_path": _file,
    "dataset.data_path": _blend,
    "dataset.train_data_path": _blend,
    "dataset.valid_data_path": _blend,
    "tokenizer.tokenizer_model": _tokenizer,
    "tokenizer.teacher_tokenizer_model": _tokenizer,
    "checkpoint.pretrained_checkpoint": _checkpoint,
    "model.hf_path": _huggingface,
    "model.teacher.checkpoint": _checkpoint,
    "model.teacher.hf_path": _huggingface,
}
