"""A model on disk as a Hugging Face folder, for programs that read nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_kd.checkpoints.model_weights import saved_dtype
from megatron_kd.errors import InputError
from megatron_kd.evaluation.saved_model import SavedModel
from megatron_kd.huggingface.export import export_hf

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@contextmanager
def huggingface_folder(model: SavedModel, tokenizer: str | None = None) -> Iterator[Path]:
    """The folder itself, or a checkpoint exported to a temporary one, in the precision it was saved in.

    Args:
        model: where it lies.
        tokenizer: a folder to read in place of the model's own; None takes that, of a checkpoint its run's.

    Raises:
        InputError: a checkpoint that cannot be exported, or a model without a tokenizer.
    """
    if model.is_huggingface:
        _refuse_without_tokenizer(model.folder, model, tokenizer)
        yield model.folder
        return
    with tempfile.TemporaryDirectory(prefix="megatron-kd-") as folder:
        output = Path(folder) / "model"
        export_hf(model.folder, output, dtype=saved_dtype(model.folder), tokenizer=tokenizer)
        _refuse_without_tokenizer(output, model, tokenizer)
        yield output


def _refuse_without_tokenizer(folder: Path, model: SavedModel, tokenizer: str | None) -> None:
    if tokenizer is None and not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(f"{model.folder}: no tokenizer is known for this model; give one with --tokenizer DIR")


def default_device() -> str:
    """Where these programs compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"
