"""The tensors in a Hugging Face folder, read from the headers of its safetensors files.

Names, shapes and sizes are in the header of each file (8 bytes of length, then JSON), so a folder is checked without
reading a tensor and without torch. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.tensors import huggingface_shapes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}  # fmt: skip
_READ = ("F32", "F16", "BF16")
_LONGEST_HEADER = 100_000_000  # what the safetensors library accepts
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Tensors in older folders that follow from config.json.
_IGNORED = (".rotary_emb.inv_freq", ".self_attn.masked_bias", ".self_attn.bias")
_SHOWN = 3


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a file, its shape and its dtype as safetensors names it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_entries(folder: str | Path) -> dict[str, Entry]:
    """All tensors of a folder by name.

    Raises:
        ConfigError: no safetensors, a missing or truncated file, or one that is not what the index says; all at once.
    """
    folder = Path(folder)
    index, problems = _index(folder)
    entries: dict[str, Entry] = {}
    for name in sorted(set(index.values())) if index is not None else [SINGLE]:
        try:
            entries.update(_header(folder / name))
        except ConfigError as error:
            problems += error.lines
    if not problems and index is not None:
        misplaced = [t for t, name in index.items() if t not in entries or entries[t].file.name != name]
        if misplaced:
            problems.append(
                f"{INDEX} names tensors that are not in the file it gives ({_few(misplaced)}); copy the folder again"
            )
    if problems:
        raise ConfigError(problems)
    return entries


def check_entries(entries: dict[str, Entry], model: GPTModelProvider) -> list[str]:
    """Problems of `entries` as the weights of `model`: missing, surplus, of another shape or an unsupported dtype."""
    wanted = huggingface_shapes(model)
    problems = []
    if missing := [name for name in wanted if name not in entries]:
        problems.append(f"{len(missing)} tensors are missing ({_few(missing)}); copy the folder again")
    reshaped = [
        f"{name} has shape {entries[name].shape}, by config.json it must be {shape}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    if reshaped:
        problems.append(f"{_few(reshaped)}; config.json and weights belong to different models")
    if unread := [f"{n} is {entries[n].dtype}" for n in wanted if n in entries and entries[n].dtype not in _READ]:
        problems.append(f"{_few(unread)}; weights must be {', '.join(_READ)}")
    surplus = [name for name in entries if name not in wanted and not name.endswith(_IGNORED)]
    if model.share_embeddings_and_output_weights:
        surplus = [name for name in surplus if name != "lm_head.weight"]  # a copy of the embedding
    if surplus:
        problems.append(
            f"{_few(surplus)}: config.json describes a model without these tensors; the weights belong to another"
        )
    return problems


def folder_problems(folder: str | Path, model: GPTModelProvider) -> list[str]:
    """Why the weights of `model` cannot be read from `folder`; empty if they can."""
    try:
        return check_entries(read_entries(folder), model)
    except ConfigError as error:
        return error.lines


def _index(folder: Path) -> tuple[dict[str, str] | None, list[str]]:
    """The file of each tensor, or None for a folder of one file; and what is wrong."""
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return None, []
        return {}, [_no_weights(folder)]
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name for name in files.values()):
            raise ValueError("weight_map must name files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {}, [f"{INDEX} cannot be read ({error!r}); copy it again"]
    return files, []


def _no_weights(folder: Path) -> str:
    names = os.listdir(folder) if folder.is_dir() else []
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        return (
            f"has only pickled weights ({_few(pickled)}), which can run code and are not read; write safetensors where "
            "you trust them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OTHER_DIR)"
        )
    return f"there is neither {SINGLE} nor {INDEX}; copy the folder again"


def _header(path: Path) -> Iterator[tuple[str, Entry]]:
    """The entries of one file, whose size must be the one its header implies."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
                raise ConfigError([f"{path.name} is truncated or not a safetensors file ({size} bytes); copy it again"])
            header = json.loads(file.read(length))
        entries = {name: _entry(path, value) for name, value in header.items() if name != "__metadata__"}
        ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
    except FileNotFoundError as error:
        raise ConfigError([f"{path.name} is missing; copy it again"]) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path.name} is not a safetensors file ({error}); copy it again"]) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ConfigError([f"{path.name} has {size} bytes, by its header it must have {expected}; copy it again"])
    return iter(entries.items())


def _entry(path: Path, value: dict[str, Any]) -> Entry:
    shape, (start, end) = tuple(value["shape"]), value["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError("sizes must be whole numbers")
    if end - start != math.prod(shape) * _BYTES[value["dtype"]]:
        raise ValueError(f"a tensor of {value['dtype']} and shape {shape} cannot take {end - start} bytes")
    return Entry(path, value["dtype"], shape)


def _few(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
