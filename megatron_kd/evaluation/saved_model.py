"""A model on disk: a checkpoint of megatron_kd or a Hugging Face folder; one place tells which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_kd.checkpoints.contents import architecture_of, find_checkpoint
from megatron_kd.config.gpt_model import GPTModelProvider
from megatron_kd.config.hub_names import looks_like_hub_name
from megatron_kd.errors import InputError
from megatron_kd.huggingface.architecture import is_huggingface_folder


@dataclass(frozen=True)
class SavedModel:
    """Where a model lies: a Hugging Face folder, or the folder of one checkpoint, `.../iter_0000100`."""

    folder: Path
    is_huggingface: bool

    def provider(self, seq_length: int | None = None) -> GPTModelProvider:
        """The model, with its weights from here, for sequences of `seq_length` (None: what the folder says).

        A Hugging Face folder's own architecture is filled in when the configuration is made.

        Raises:
            InputError: a checkpoint that does not say what model it holds.
        """
        if self.is_huggingface:
            provider = GPTModelProvider(hf_path=str(self.folder))
        else:
            provider = architecture_of(self.folder)
            provider.checkpoint = str(self.folder)
        if seq_length is not None:
            provider.seq_length = seq_length
        return provider


def saved_model(path: str | Path, field: str) -> SavedModel:
    """The model that `path` means: a Hugging Face folder, a checkpoint, or the newest in a run's folder.

    Args:
        path: a folder.
        field: what errors call the path's origin.

    Raises:
        InputError: there is no model.
    """
    if is_huggingface_folder(path):
        return SavedModel(Path(path), is_huggingface=True)
    try:
        return SavedModel(find_checkpoint(path, field), is_huggingface=False)
    except InputError as error:
        if looks_like_hub_name(path):
            raise
        raise InputError(f"{error}; or give a Hugging Face folder, which has a config.json") from None
