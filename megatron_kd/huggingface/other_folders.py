"""Folders that are not a model in safetensors: what they are instead, and how to get the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.checkpoints.contents import MANIFEST, METADATA

CONFIG_FILE = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
LFS_POINTER = "version https://git-lfs"  # how a file begins that Git LFS has not fetched

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 3


def few(items: list[str]) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def why_no_config(folder: Path) -> str:
    """Why an existing path is not a Hugging Face model's folder."""
    if (folder / METADATA).is_file() or (folder / MANIFEST).is_file():
        return (
            "is a checkpoint, not a Hugging Face folder; give it as checkpoint.pretrained_checkpoint (the student) or "
            "model.teacher.checkpoint"
        )
    if recognised := what_else(folder):
        return recognised
    return f"there is no {CONFIG_FILE} in this folder, so it is not a Hugging Face model" + unfinished(folder)


def what_else(folder: Path) -> str | None:
    """A path's kind, if it is neither a checkpoint nor a model's folder, and the cure; None where that is not known."""
    if not folder.is_dir():
        return "is a file, not a folder; give the folder that has it"
    if not _names(folder):
        return "is empty; download the model again: `hf download NAME --local-dir DIR`"
    if adapter := why_adapter(folder):
        return adapter
    if deeper := sorted(str(path.parent.relative_to(folder)) for path in _configs_below(folder)):
        return f"there is no {CONFIG_FILE} in this folder, but in {few(deeper)}; give that folder"
    if others := list(_other_weights(folder)):
        return f"there is no {CONFIG_FILE} in this folder; {others[0]}"
    return None


def why_adapter(folder: Path) -> str | None:
    """Why a folder with a PEFT adapter is not read, or None without one.

    `transformers` would read the base that the adapter names, whatever else is in the folder.
    """
    if not (folder / ADAPTER).is_file():
        return None
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        base = None
    beside = f"; if the model beside it has it merged in already, delete {ADAPTER}" if _has_weights(folder) else ""
    return (
        f"has a PEFT adapter ({ADAPTER})" + (f" of {base}" if base else "") + ", and adapters are not applied; merge "
        "it first: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(OTHER_DIR), and "
        f"copy the tokenizer{beside}"
    )


def why_no_weights(folder: Path) -> str:
    """Why a folder with a `config.json` has no weights that are read."""
    for why in _other_weights(folder):
        return why
    return f"there is neither {SINGLE} nor {INDEX}; copy the folder again" + unfinished(folder)


def unfinished(folder: Path) -> str:
    """A clause on a download that was interrupted; empty without a trace of one."""
    halves = [*folder.glob("*.incomplete"), *folder.glob(".cache/huggingface/download/**/*.incomplete")]
    return "; its download is not finished: run the same `hf download` again" if halves else ""


def _other_weights(folder: Path) -> Iterator[str]:
    """Weights of other forms."""
    names = _names(folder)
    safetensors = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if shards := [name for name in safetensors if name.startswith("model-0")]:
        yield f"has {few(shards)} and no {INDEX}; copy the folder again" + unfinished(folder)
    elif safetensors:
        yield (
            f"has {few(safetensors)} and no {SINGLE}; weights of another name or format are not read; use the folder "
            "that transformers reads: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OTHER_DIR)"
        )
    if quantised := [name for name in names if name.lower().endswith(".gguf")]:
        yield f"has {few(quantised)}, and GGUF is not read; use the folder of the unquantised model in safetensors"
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        yield (
            f"has only pickled weights ({few(pickled)}), which can run code and are not read; write safetensors where "
            "you trust them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OTHER_DIR)"
        )


def _has_weights(folder: Path) -> bool:
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _configs_below(folder: Path) -> Iterator[Path]:
    """`config.json` of folders that a user may have meant: a cache folder's snapshots, a trainer's checkpoints."""
    yield from folder.glob(f"*/{CONFIG_FILE}")
    yield from folder.glob(f"snapshots/*/{CONFIG_FILE}")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
