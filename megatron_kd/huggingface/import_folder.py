"""A Hugging Face folder rewritten as a checkpoint of megatron_kd, one part of a tensor at a time.

`checkpoint.pretrained_checkpoint` and `model.teacher.checkpoint` read it. A run also reads the folder itself
(`hf_path`); a checkpoint pays off where it is read often, or by other megatron-core tools.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from megatron_kd.checkpoints.saved_state import RunState
from megatron_kd.checkpoints.tensor_parts import Part, plan_parts
from megatron_kd.checkpoints.weights_only import weights_config
from megatron_kd.checkpoints.writing import save
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.sections import TokenizerConfig
from megatron_kd.errors import ConfigError, InputError
from megatron_kd.huggingface.architecture import provider_from_hf
from megatron_kd.huggingface.folder import check_entries, read_entries
from megatron_kd.huggingface.read import Files
from megatron_kd.huggingface.safetensors_header import Entry
from megatron_kd.huggingface.tensors import Tensor, tensors_of
from megatron_kd.runtime.files import refuse_existing

_PART_BYTES = 256 << 20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def import_hf(folder: str | Path, output: str | Path) -> Path:
    """Write the checkpoint; values and precision stay as they are.

    Args:
        folder: with `config.json` and safetensors.
        output: the checkpoint's folder, which must not be there.

    Returns:
        `output`.

    Raises:
        InputError: a folder that is incomplete or not supported, or something at `output`.
    """
    folder, output = Path(folder), Path(output)
    refuse_existing(output)
    model = provider_from_hf(folder)
    try:
        entries = read_entries(folder)
        if problems := check_entries(entries, model):
            raise ConfigError(problems)
    except ConfigError as error:
        raise ConfigError([f"{folder}: {problem}" for problem in error.lines]) from error
    assert model.vocab_size is not None
    tokenizer = TokenizerConfig(tokenizer_model=str(folder)) if (folder / "tokenizer.json").is_file() else None
    try:
        with Files() as files:
            parts = list(_parts(model, entries, files))
            config = weights_config(model, model.vocab_size, tokenizer)
            save(output, lambda new: plan_parts(parts, new), config, RunState(0, model.vocab_size))
    except SafetensorError as error:
        raise InputError(f"{folder}: cannot be read: {error}") from error
    return output


def _parts(model: GPTModelProvider, entries: dict[str, Entry], files: Files) -> Iterator[Part]:
    for tensor in tensors_of(model):
        dtypes = {_DTYPES[entries[name].dtype] for name in tensor.sources}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32  # holds the values of all of them exactly
        columns = tensor.shape[1] if len(tensor.shape) > 1 else 1
        step = max(1, _PART_BYTES // (columns * dtype.itemsize))
        for start in range(0, tensor.shape[0], step):
            yield _part(tensor, model, entries, files, dtype, start, min(start + step, tensor.shape[0]))


def _part(
    tensor: Tensor,
    model: GPTModelProvider,
    entries: dict[str, Entry],
    files: Files,
    dtype: torch.dtype,
    start: int,
    end: int,
) -> Part:
    """Rows `start` to `end` of a tensor."""
    sizes = (end - start, *tensor.shape[1:])
    offset = (start, *(0 for _ in tensor.shape[1:]))

    def values() -> torch.Tensor:
        rows = torch.empty(sizes, dtype=dtype)
        files.copy_rows(rows, start, tensor, entries)
        return rows if tensor.layer is None else rows[None]

    if tensor.layer is None:
        return Part(tensor.key, tensor.shape, offset, sizes, dtype, values)
    shape = (model.num_layers, *tensor.shape)
    return Part(tensor.key, shape, (tensor.layer, *offset), (1, *sizes), dtype, values)
