"""The tensors in a Hugging Face folder, read from the headers of its safetensors files.

A folder is checked without reading a tensor and without torch. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.errors import ConfigError
from megatron_kd.huggingface.other_folders import INDEX, SINGLE, few, unfinished, why_adapter, why_no_weights
from megatron_kd.huggingface.safetensors_header import Entry, are_copies, header
from megatron_kd.huggingface.tensors import huggingface_shapes

_READ = ("F32", "F16", "BF16")
# Tensors in older folders that follow from config.json.
_IGNORED = (".rotary_emb.inv_freq", ".self_attn.masked_bias", ".self_attn.bias")
# Tensors of weights that GPTQ, AWQ, bitsandbytes, compressed-tensors or ModelOpt have quantised.
_QUANTISED = (".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".quant_map", ".SCB", ".weight_packed",
              ".weight_scale", ".weight_scale_2", ".weight_scale_inv", ".weight_zero_point")  # fmt: skip
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_entries(folder: str | Path) -> dict[str, Entry]:
    """All tensors of a folder by name. As in `transformers`, a `model.safetensors` wins over an index.

    Raises:
        ConfigError: no safetensors, a missing or truncated file, or one that is not what the index says; all at once.
    """
    folder = Path(folder)
    if adapter := why_adapter(folder):
        raise ConfigError([adapter])
    if (folder / SINGLE).is_file():
        return dict(header(folder / SINGLE))
    if not (folder / INDEX).is_file():
        raise ConfigError([why_no_weights(folder)])
    return _sharded(folder, _index(folder))


def check_entries(entries: dict[str, Entry], model: GPTModelProvider) -> list[str]:
    """Problems of `entries` as the weights of `model`: missing, surplus, of another shape or an unsupported dtype."""
    wanted = huggingface_shapes(model)
    if quantised := [name for name in entries if name not in wanted and name.endswith(_QUANTISED)]:
        return [f"{few(quantised)}: quantised weights are not read; use the folder of the unquantised model"]
    return [*_missing(entries, wanted), *_misfits(entries, wanted), *_surplus(entries, wanted, model)]


def folder_problems(folder: str | Path, model: GPTModelProvider) -> list[str]:
    """Why the weights of `model` cannot be read from `folder`; empty if they can."""
    try:
        return check_entries(read_entries(folder), model)
    except ConfigError as error:
        return error.lines


def _missing(entries: dict[str, Entry], wanted: dict[str, tuple[int, ...]]) -> Iterator[str]:
    missing = [name for name in wanted if name not in entries]
    if missing == [_HEAD]:
        yield (
            f"{_HEAD} is missing, and config.json has tie_word_embeddings=false; if the embedding is the head, set it "
            "to true there, otherwise copy the folder again"
        )
    elif missing:
        yield f"{len(missing)} tensors are missing ({few(missing)}); copy the folder again"


def _misfits(entries: dict[str, Entry], wanted: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Tensors of another shape, or of a dtype that is not read."""
    there = {name: entries[name] for name in wanted if name in entries}
    reshaped = [
        f"{name} has shape {entry.shape}, by config.json it must be {wanted[name]}"
        for name, entry in there.items()
        if entry.shape != wanted[name]
    ]
    if reshaped:
        yield f"{few(reshaped)}; config.json and weights belong to different models"
    if unread := [f"{name} is {entry.dtype}" for name, entry in there.items() if entry.dtype not in _READ]:
        yield f"{few(unread)}; weights must be {', '.join(_READ)}"


def _surplus(entries: dict[str, Entry], wanted: dict[str, tuple[int, ...]], model: GPTModelProvider) -> Iterator[str]:
    surplus = [name for name in entries if name not in wanted and not name.endswith(_IGNORED)]
    if model.share_embeddings_and_output_weights and _HEAD in surplus and _EMBEDDING in entries:
        surplus.remove(_HEAD)
        if not are_copies(entries[_EMBEDDING], entries[_HEAD]):
            yield (
                f"config.json has tie_word_embeddings=true, but {_HEAD} is not a copy of {_EMBEDDING}; if the head "
                f"was trained on its own, set it to false there, otherwise delete {_HEAD}"
            )
    if surplus:
        yield f"{few(surplus)}: config.json describes a model without these tensors; the weights belong to another"


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor."""
    try:
        files: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) and Path(name).name == name for name in files.values()):
            raise ValueError("weight_map must name files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError([f"{INDEX} cannot be read ({error!r}); copy it again"]) from error
    return files


def _sharded(folder: Path, index: dict[str, str]) -> dict[str, Entry]:
    """The tensors of all files that an index names, those included that it leaves out, as `transformers` has it."""
    names, entries, problems = sorted(set(index.values())), dict[str, Entry](), list[str]()
    if absent := [name for name in names if not (folder / name).is_file()]:
        are = "is" if len(absent) == 1 else "are"
        files = f"{len(absent)} of the {len(names)} file{'s' * (len(names) > 1)} that {INDEX} names {are} missing"
        problems.append(f"{files} ({few(absent)}); copy the folder again" + unfinished(folder))
    for name in (name for name in names if name not in absent):
        try:
            found = header(folder / name)
        except ConfigError as error:
            problems += error.lines
            continue
        problems += [
            f"{tensor} is in both {entries[tensor].file.name} and {name}; delete the file that is not the model's"
            for tensor in found
            if tensor in entries
        ][:1]
        entries = found | entries
    if not problems and (lost := [t for t, name in index.items() if t not in entries or entries[t].file.name != name]):
        problems.append(f"{INDEX} names tensors that are not in the file it gives ({few(lost)}); copy the folder again")
    if problems:
        raise ConfigError(problems)
    return entries
